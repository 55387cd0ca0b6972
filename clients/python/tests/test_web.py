"""Routes of FastAPI for users with a key, against a gateway."""

import asyncio
import inspect
import socket
import threading
from typing import Any, AsyncIterator, Dict, Iterator, List

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tollgate_client import ApiKeyUser, UserInfo, UserManagerClient, default_client, require_api_key

from . import postponed
from .conftest import User

pytestmark = pytest.mark.anyio

ran: List[str] = []


@pytest.fixture
async def users() -> AsyncIterator[UserManagerClient]:
    ran.clear()
    async with UserManagerClient() as client, default_client():
        yield client


def routes(users: UserManagerClient) -> FastAPI:
    app = FastAPI()
    app.include_router(postponed.router)

    # As the older system's guide has it.
    @app.get("/protected")
    @require_api_key
    async def protected_route(request: Request) -> Dict[str, Any]:
        user = request.state.user
        remaining = request.state.remaining_conversations
        ran.append("protected")
        return {"user": user["username"], "remaining": remaining}

    @app.get("/sync/{item}")
    @require_api_key(client=users)
    def sync(item: int, request: Request, q: str = "none") -> Dict[str, Any]:
        ran.append("sync")
        on_loop = threading.current_thread() is threading.main_thread()
        return {"item": item, "q": q, "user": request.state.user["user_id"], "on_loop": on_loop}

    @app.get("/depends")
    async def depends(request: Request, user: UserInfo = Depends(ApiKeyUser(users))) -> Dict[str, Any]:
        ran.append("depends")
        return {"user": user["username"], "same": request.state.user is user}

    @app.get("/teapot")
    @require_api_key(client=users)
    async def teapot(request: Request) -> None:
        raise HTTPException(418, "the route's own")

    return app


async def get(app: Any, path: str, headers: Any, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return await client.request(options.pop("method", "GET"), path, headers=headers, **options)


def bearer(user: User) -> Dict[str, str]:
    return {"Authorization": f"Bearer {user.key}"}


async def test_a_route_knows_its_user_and_what_he_has_left(users: UserManagerClient, user: User) -> None:
    app = routes(users)
    for left in (9, 8):
        answer = await get(app, "/protected", bearer(user))
        assert (answer.status_code, answer.json()) == (200, {"user": user.name, "remaining": left})
    answer = await get(app, "/sync/3?q=x", bearer(user))
    assert answer.json() == {"item": 3, "q": "x", "user": user.id, "on_loop": False}
    answer = await get(app, "/depends", bearer(user))
    assert answer.json() == {"user": user.name, "same": True}
    answer = await get(app, "/postponed/2", bearer(user), method="POST", json={"text": "Hello"})
    assert answer.json() == {"nth": 2, "text": "Hello", "username": user.name}
    assert (await get(app, "/teapot", bearer(user))).json() == {"detail": "the route's own"}
    assert user.left() == 4


async def test_the_key_is_read_as_the_gateway_reads_it(users: UserManagerClient, user: User) -> None:
    app, key = routes(users), user.key
    expected = [
        (200, [("Authorization", f"bearer  {key} ")]),
        (200, [("X-API-Key", key)]),
        (200, [("X-API-Key", key), ("Authorization", f"Bearer {key}")]),
        (400, [("X-API-Key", key), ("Authorization", "Bearer pe-other")]),
        (400, [("X-API-Key", key), ("Authorization", f"Basic {key}")]),
        (400, [("X-API-Key", key), ("X-API-Key", key)]),
        (400, [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]),
        (401, []),
        (401, [("X-API-Key", "")]),
        (401, [("Authorization", key)]),
        (401, [("Authorization", f"Basic {key}")]),
        (401, [("Authorization", f"Bearer {key} {key}")]),
        (401, [("Authorization", b"Bearer pe-\xff")]),
    ]
    for path in ("/protected", "/depends"):
        for status, headers in expected:
            answer = await get(app, path, headers)
            assert answer.status_code == status, (headers, answer.text)
            assert (answer.headers.get("www-authenticate") is not None) == (status == 401)
    assert ran == ["protected"] * 3 + ["depends"] * 3
    assert user.left() == 4


async def test_a_refusal_is_the_route_s_answer(users: UserManagerClient, user: User) -> None:
    app = routes(users)
    key = user.call("POST", "/v1/users/keys", json={"name": "slow", "per_minute": 1})["api_key"]
    await users.verify_user(key)
    answer = await get(app, "/protected", {"X-API-Key": key})
    assert (answer.status_code, answer.json()) == (429, {"detail": "Rate limit of 1 requests a minute exceeded"})
    assert int(answer.headers["retry-after"]) >= 1
    user.manage("PUT", json={"limits": {"conversation_limit": 0}})
    answer = await get(app, "/depends", bearer(user))
    assert (answer.status_code, answer.json()) == (429, {"detail": "Insufficient conversation credits"})
    user.manage("POST", "/suspend", json={})
    assert (await get(app, "/sync/1", bearer(user))).status_code == 403
    assert ran == []


async def test_a_gateway_that_is_down_lets_nobody_to_a_route(users: UserManagerClient, nobody: str, user: User) -> None:
    async with UserManagerClient(nobody) as lost:
        for path in ("/sync/1", "/depends"):
            answer = await get(routes(lost), path, bearer(user))
            assert (answer.status_code, answer.json()) == (503, {"detail": "The user gateway cannot be reached"})
    assert ran == [] and user.left() == 10


async def test_the_address_of_the_app_s_client_is_sent(users: UserManagerClient, user: User) -> None:
    for address, status in (("203.0.113.9", 403), ("198.51.100.7", 200), ("testclient", 200)):
        transport = httpx.ASGITransport(routes(users), client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            assert (await client.get("/protected", headers=bearer(user))).status_code == status


async def test_routes_of_starlette(users: UserManagerClient, user: User) -> None:
    @require_api_key(client=users)
    def hello(anything: Request) -> PlainTextResponse:
        return PlainTextResponse(anything.state.user["username"])

    app = Starlette(routes=[Route("/", hello)])
    assert (await get(app, "/", bearer(user))).text == user.name
    assert (await get(app, "/", {})).status_code == 401


def test_older_frameworks_need_not_know_where_a_route_s_annotations_come_from() -> None:
    parameters = inspect.signature(postponed.postponed).parameters
    assert [p.annotation for p in parameters.values()] == [int, postponed.Question, Request]


def test_a_route_without_a_request_is_a_mistake() -> None:
    def no_request(item: int) -> None: ...

    with pytest.raises(TypeError, match="no_request needs a parameter `request: Request`"):
        require_api_key(no_request)


# The older system's integration guide, but for the import and what it leaves open.
def guide() -> FastAPI:
    app = FastAPI()
    user_manager = UserManagerClient()

    @app.on_event("startup")
    async def startup() -> None:
        await user_manager.initialize()

    @app.on_event("shutdown")
    async def shutdown() -> None:
        await user_manager.aclose()

    @app.post("/api/chat")
    async def chat_endpoint(request: Request, data: Dict[str, Any]) -> Any:
        auth_header = request.headers.get("Authorization", "")
        if not auth_header.startswith("Bearer "):
            raise HTTPException(401, "Missing API key")
        api_key = auth_header.split(" ")[1]
        assert request.client is not None
        client_ip = request.client.host
        try:
            user_info = await user_manager.verify_user(api_key, client_ip)
            response = {"user": user_info["username"]}
            await user_manager.log_conversation(api_key, data.get("model", "gpt-3.5-turbo"), data.get("messages", []))
            return response
        except HTTPException:
            raise

    return app


@pytest.fixture
def served() -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(guide(), log_level="error"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # From here on connections wait, until the server takes them.
        listener.listen()
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.mark.filterwarnings("ignore:\\s*on_event is deprecated:DeprecationWarning")
def test_the_older_system_s_guide_works(served: str, user: User) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with httpx.Client(base_url=served, trust_env=False, timeout=20) as app:
        answer = app.post("/api/chat", headers=bearer(user), json={"messages": messages})
        assert (answer.status_code, answer.json()) == (200, {"user": user.name}), answer.text
        answer = app.post("/api/chat", headers={"Authorization": "Bearer pe-wrong"}, json={})
        assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid or missing credential"})
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert app.post("/api/chat", json={}).status_code == 401
    [logged] = user.conversations()
    assert (logged["model"], logged["messages"]["request"]) == ("gpt-3.5-turbo", messages)
    assert user.left() == 9
