"""Routes in a module with postponed annotations, as many apps are written."""

from __future__ import annotations

from typing import Any, Dict

from fastapi import APIRouter, Request
from pydantic import BaseModel
from tollgate_client import require_api_key

router = APIRouter()


class Question(BaseModel):
    text: str


@router.post("/postponed/{nth}")
@require_api_key
async def postponed(nth: int, question: Question, incoming: Request) -> Dict[str, Any]:
    return {"nth": nth, "text": question.text, "username": incoming.state.user["username"]}
