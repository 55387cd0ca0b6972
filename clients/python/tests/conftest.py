"""What the tests stand on: a gateway, which tests/it/python_client.rs starts, its users, and servers that are none."""

import asyncio
import contextlib
import filecmp
import itertools
import os
import socket
from pathlib import Path
from typing import Any, AsyncIterator, Dict, Iterator, List, Optional

import httpx
import pytest
import tollgate_client

PASSWORD = "SecurePass123"

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """The tests are of the package as it is installed: an older copy would tell nothing."""
    installed = Path(tollgate_client.__file__).parent
    sources = Path(__file__).parent.parent / "src" / "tollgate_client"
    names = {path.name for folder in (installed, sources) for path in folder.iterdir() if path.is_file()}
    _, differing, missing = filecmp.cmpfiles(installed, sources, sorted(names), shallow=False)
    if differing or missing:
        pytest.exit(f"{installed} is not what {sources} has ({differing + missing}): run `make clients`", 3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class User:
    """Somebody who has registered at the gateway, with his key."""

    def __init__(self, gateway: "Gateway", name: str) -> None:
        email = f"{name}@example.com"
        fields = {"username": name, "name": "Test User", "email": email, "password": PASSWORD}
        answer = gateway.call("POST", "/v1/users/register", json=fields)
        self.gateway, self.name, self.id, self.key = gateway, name, int(answer["user_id"]), str(answer["api_key"])
        login = gateway.call("POST", "/v1/users/login", json={"email": email, "password": PASSWORD})
        self.session = str(login["session"]["session_token"])

    def call(self, method: str, path: str, **options: Any) -> Any:
        return self.gateway.call(method, path, headers={"authorization": f"Bearer {self.session}"}, **options)

    def manage(self, method: str, what: str = "", **options: Any) -> Any:
        """As an admin, at the side port."""
        return self.gateway.admin_call(method, f"/v1/admin-panel/users/{self.id}{what}", **options)

    def left(self) -> float:
        """Conversations, as the gateway's books have them."""
        return float(self.manage("GET")["user"]["meters"]["conversations"]["balance"])

    def conversations(self) -> List[Dict[str, Any]]:
        logs = self.gateway.admin_call("GET", f"/v1/admin-panel/message-logs/{self.id}")
        return list(logs["items"])


class Gateway:
    def __init__(self) -> None:
        try:
            self.url, self.admin_url = os.environ["TOLLGATE_URL"], os.environ["TOLLGATE_TEST_ADMIN_URL"]
            self.admin_token = os.environ["TOLLGATE_TEST_ADMIN_TOKEN"]
        except KeyError as missing:
            pytest.fail(f"{missing} is not set: `cargo test --test it python_client` starts a gateway and these tests")

    def call(self, method: str, path: str, **options: Any) -> Any:
        answer = httpx.request(method, self.url + path, trust_env=False, timeout=20, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def admin_call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"authorization": f"Bearer {self.admin_token}"}
        answer = httpx.request(method, self.admin_url + path, headers=headers, trust_env=False, timeout=20, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def register(self) -> User:
        return User(self, f"python{next(_numbers)}")


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def user(gateway: Gateway) -> User:
    return gateway.register()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, and nobody will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Impostor:
    """Something that listens and answers each request with the same bytes, or hangs up, or does nothing at all."""

    def __init__(self, answer: Optional[bytes]) -> None:
        self.answer, self.url, self.connections = answer, "", 0
        self.requests: List[bytes] = []

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                if self.answer is not None:
                    writer.write(self.answer)
                if self.answer == b"":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def impostor(answer: Optional[bytes]) -> AsyncIterator[Impostor]:
    """`answer`: empty to hang up after the first request, none to keep silent."""
    it = Impostor(answer)
    server = await asyncio.start_server(it.meet, "127.0.0.1", 0)
    it.url = "http://127.0.0.1:{}".format(server.sockets[0].getsockname()[1])
    try:
        yield it
    finally:
        server.close()
