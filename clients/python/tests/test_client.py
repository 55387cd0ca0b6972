"""The client against servers that are no gateway, are down, or say what a test wants."""

import asyncio
import gc
import json
import pickle
import subprocess
import sys
from typing import Any, Awaitable, Callable, Dict, List, Optional

import anyio
import httpx
import pytest
import tollgate_client
from fastapi import HTTPException
from tollgate_client import TollgateError, UserManagerClient

from .conftest import impostor

pytestmark = pytest.mark.anyio

KEY = "pe-0123456789abcdefghijklmnopqrstuv"
VERIFIED = {"success": True, "valid": True, "user_id": 1, "username": "alice", "remaining_conversations": 9}


class Told(httpx.AsyncBaseTransport):
    """Answers what it was told to, and keeps what it was asked."""

    def __init__(self, status: int, body: Any, headers: Optional[Dict[str, str]] = None) -> None:
        self.asked: List[httpx.Request] = []
        self._status, self._headers = status, headers
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        return httpx.Response(self._status, content=self._body, headers=self._headers)


def http(body: Any) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content)


async def error_of(asking: Awaitable[Any]) -> TollgateError:
    with pytest.raises(TollgateError) as caught:
        await asking
    assert isinstance(caught.value, HTTPException)
    return caught.value


async def test_what_is_asked() -> None:
    told = Told(200, {**VERIFIED, "logged": True})
    client = UserManagerClient("https://gateway.example/base/", transport=told)
    await client.verify_user(KEY, "192.0.2.1")
    messages = [{"role": "user", "content": "é"}]
    await client.log_conversation(KEY, "m", messages, "", input_tokens=0, client_ip="fe80::1%eth0")
    await client.validate_user("token")
    urls = [f"{request.method} {request.url}" for request in told.asked]
    assert urls == [
        "POST https://gateway.example/base/v1/auth/verify-key",
        "POST https://gateway.example/base/v1/auth/log-message",
        "POST https://gateway.example/base/api/users/validate-token",
    ]
    assert [request.headers["authorization"] for request in told.asked] == [f"Bearer {KEY}"] * 2 + ["Bearer token"]
    assert [request.headers.get("x-forwarded-for") for request in told.asked] == ["192.0.2.1", "fe80::1", None]
    assert [request.content for request in (told.asked[0], told.asked[2])] == [b"", b""]
    logged = {"model": "m", "messages": messages, "response": "", "research_model": False}
    assert json.loads(told.asked[1].content) == {**logged, "input_tokens": 0}
    await client.aclose()


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [(429, {"retry-after": "7"}, 7), (503, {"retry-after": "soon"}, None), (418, {}, None), (500, {}, None)],
)
async def test_a_refusal_keeps_what_the_gateway_says(
    status: int, headers: Dict[str, str], seconds: Optional[int]
) -> None:
    body = {"success": False, "message": "No", "error_code": "WHY", "errors": ["a", "b"], "limits": {"meter": "m"}}
    told = Told(status, {**body, "details": {"request_id": "req_1"}}, {**headers, "set-cookie": "a=b"})
    error = await error_of(UserManagerClient(transport=told).verify_user(KEY))
    assert (error.status, error.code, error.message, error.errors) == (status, "WHY", "No", ["a", "b"])
    assert (error.limits, error.request_id, error.retry_after) == ({"meter": "m"}, "req_1", seconds)
    assert {name.lower(): value for name, value in (error.headers or {}).items()} == headers
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.__dict__) == (type(error), error.__dict__)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"\xff"),
        (200, []),
        (200, {}),
        (200, {**VERIFIED, "valid": False}),
        (200, {**VERIFIED, "valid": "true"}),
        (200, {**VERIFIED, "username": None}),
        (200, {**VERIFIED, "user_id": None}),
        (200, {**VERIFIED, "remaining_conversations": None}),
        (201, VERIFIED),
        (204, b""),
        (302, VERIFIED),
        (401, b"<html>"),
        (404, {"detail": "Not Found"}),
        (502, b"Bad Gateway"),
    ],
)
async def test_nobody_is_let_in_by_what_is_no_gateway_s_answer(status: int, body: Any) -> None:
    told = Told(status, body, {"location": "http://elsewhere.example/"})
    error = await error_of(UserManagerClient(transport=told).verify_user(KEY))
    assert (error.status, error.code) == (503, "GATEWAY_ANSWER")
    assert len(told.asked) == 1, "no redirect is followed"


@pytest.mark.parametrize("key", ["", " ", "a b", "pe-é", "pe-\r\nX-Forwarded-For: 10.0.0.1", "\ud800", "a" * 4097])
async def test_what_cannot_be_a_key_is_not_sent(key: str) -> None:
    told = Told(200, VERIFIED)
    client = UserManagerClient(transport=told)
    error = await error_of(client.verify_user(key))
    assert (error.status, error.code) == (401, "UNAUTHENTICATED")
    assert error.headers == {"WWW-Authenticate": 'Bearer realm="tollgate"'}
    assert (await client.validate_user(key))["valid"] is False
    assert told.asked == []


async def test_a_gateway_that_is_down_lets_nobody_in(nobody: str, caplog: pytest.LogCaptureFixture) -> None:
    async with UserManagerClient(nobody) as client:
        calls: List[Callable[[], Awaitable[Any]]] = [
            lambda: client.verify_user(KEY),
            lambda: client.validate_user(KEY),
            lambda: client.log_conversation(KEY, "m", [], raise_errors=True),
        ]
        for call in calls:
            error = await error_of(call())
            assert (error.status, error.code) == (503, "GATEWAY_UNREACHABLE")
            assert error.message == "The user gateway cannot be reached", "and no word of where it is"
        assert await client.log_conversation(KEY, "m", []) is False
    assert nobody in caplog.text and KEY not in caplog.text


async def test_connecting_is_tried_again_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    async def connect_tcp(*args: Any, **options: Any) -> Any:
        tries.append(args)
        raise OSError("no way")

    monkeypatch.setattr(anyio, "connect_tcp", connect_tcp)
    for retries in (0, 1):
        tries.clear()
        async with UserManagerClient(connect_retries=retries) as client:
            assert (await error_of(client.verify_user(KEY))).code == "GATEWAY_UNREACHABLE"
        assert len(tries) == 1 + retries


async def test_what_was_sent_is_never_sent_again() -> None:
    async with impostor(b"") as hangs_up, UserManagerClient(hangs_up.url, connect_retries=5) as client:
        assert (await error_of(client.verify_user(KEY))).code == "GATEWAY_UNREACHABLE"
        assert await client.log_conversation(KEY, "m", []) is False
        assert (await error_of(client.validate_user(KEY))).code == "GATEWAY_UNREACHABLE"
        paths = [request.split()[1] for request in hangs_up.requests]
        assert paths == [b"/v1/auth/verify-key", b"/v1/auth/log-message", b"/api/users/validate-token"]
        assert hangs_up.connections == 3


async def test_silence_ends_after_the_timeout() -> None:
    async with impostor(None) as silent, UserManagerClient(silent.url, timeout=1.0, connect_retries=5) as client:
        assert (await error_of(client.verify_user(KEY))).code == "GATEWAY_UNREACHABLE"
        assert (silent.connections, len(silent.requests)) == (1, 1)


async def test_a_call_ends_after_the_timeout_whatever_its_parts_take() -> None:
    class Endless(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    asking = UserManagerClient(transport=Endless(), timeout=0.01).verify_user(KEY)
    assert (await error_of(asyncio.wait_for(asking, 20))).code == "GATEWAY_UNREACHABLE"


async def test_connections_are_used_again() -> None:
    async with impostor(http(VERIFIED)) as server, UserManagerClient(server.url) as client:
        for _ in range(3):
            assert (await client.verify_user(KEY))["username"] == "alice"
        assert (server.connections, len(server.requests)) == (1, 3)
        await client.aclose()
        await client.verify_user(KEY)
        assert server.connections == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_one_client_serves_one_event_loop_after_another() -> None:
    client = UserManagerClient("http://gateway.example")
    pools: List[httpx.AsyncClient] = []

    async def ask() -> None:
        async with impostor(http(VERIFIED)) as server:
            client.base_url = server.url
            assert (await client.verify_user(KEY))["username"] == "alice"
            pools.extend(client._pools.values())

    for _ in range(3):
        asyncio.run(ask())
    assert len(pools) == len(set(map(id, pools))) == 3, "those of loops that have ended are forgotten"
    # Their connections go now, while the warnings about it are expected.
    client._pools.clear()
    pools.clear()
    gc.collect()


async def test_a_token_is_looked_at() -> None:
    user = {"valid": True, "user_id": 7, "username": "alice"}
    assert await UserManagerClient(transport=Told(200, user)).validate_user("token") == user
    nobody = {"success": False, "error_code": "UNAUTHENTICATED", "message": "Invalid or missing credential"}
    for body in (nobody, {**nobody, "valid": False}, {**nobody, "valid": True}):
        answer = await UserManagerClient(transport=Told(401, body)).validate_user("token")
        assert answer == {**nobody, "valid": False}
    for status, strange in ((200, {}), (200, {"valid": False}), (200, {"valid": "yes"}), (302, user), (401, [])):
        error = await error_of(UserManagerClient(transport=Told(status, strange)).validate_user("token"))
        assert (error.status, error.code) == (503, "GATEWAY_ANSWER")
    refused = {"valid": True, "error_code": "FORBIDDEN", "message": "No"}
    error = await error_of(UserManagerClient(transport=Told(403, refused)).validate_user("token"))
    assert (error.status, error.code) == (403, "FORBIDDEN")


def test_where_the_gateway_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_URL", "http://10.0.0.1:80")
    assert UserManagerClient().base_url == "http://10.0.0.1:80"
    assert UserManagerClient("https://gateway.example").base_url == "https://gateway.example"
    monkeypatch.delenv("TOLLGATE_URL")
    assert UserManagerClient().base_url == "http://127.0.0.1:8080"
    for bad in ("127.0.0.1:8080", "gateway", "ftp://g", "http://", "http://u:hunter2@g", "http://g/?a=b", "http://g:x"):
        with pytest.raises(ValueError, match="The gateway's address") as caught:
            UserManagerClient(bad)
        assert "hunter2" not in str(caught.value)


def test_without_a_web_framework_it_is_a_plain_error() -> None:
    script = """
import asyncio, sys
if sys.argv[1] == "missing":
    sys.modules["starlette"] = None
from tollgate_client import TollgateError, UserManagerClient
try:
    asyncio.run(UserManagerClient().verify_user("no key"))
except TollgateError as error:
    assert type(error) is TollgateError and str(error).startswith("401 UNAUTHENTICATED: "), error
assert sys.modules.get("starlette") is None and "fastapi" not in sys.modules
if sys.argv[1] == "missing":
    try:
        from tollgate_client import require_api_key
    except ImportError as error:
        assert "starlette" in str(error), error
"""
    for starlette in ("there", "missing"):
        done = subprocess.run([sys.executable, "-c", script, starlette], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_package_has_what_it_says() -> None:
    for name in tollgate_client.__all__:
        assert getattr(tollgate_client, name).__name__ == name
    with pytest.raises(AttributeError):
        tollgate_client.no_such_thing
