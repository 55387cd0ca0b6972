"""The questions an app asks the gateway.

Owns the connections to it and the reading of its answers. Nobody is let in but by an answer of the gateway that says
so, and a question that may have reached it is never asked again: it may have been charged.
"""

import asyncio
import functools
import ipaddress
import json
import logging
import os
from types import TracebackType
from typing import Any, Dict, Mapping, Optional, Sequence, Type, TypedDict, cast

import httpx

from . import errors

DEFAULT_URL = "http://127.0.0.1:8080"

# Longer than any credential of the gateway's.
_MAX_CREDENTIAL = 4096

_log = logging.getLogger("tollgate_client")


class UserInfo(TypedDict):
    """Whose key it is, and what he has left after this call."""

    success: bool
    valid: bool
    user_id: int
    username: str
    email: str
    plan: str
    #: Whole unless the plan counts in parts.
    remaining_conversations: float
    #: Of each meter.
    remaining: Dict[str, float]


class UserManagerClient:
    """Asks one gateway, over pooled connections. Safe to share among tasks; each event loop gets a pool of its own.

    `base_url`: of the gateway's public listener; without it the environment's `TOLLGATE_URL`, else
    http://127.0.0.1:8080. `timeout`: seconds for a whole call, connecting included. `connect_retries`: further tries at
    connecting, the first at once, the next after 0.5 s, 1 s, …, within `timeout`. `max_connections`: for each pool;
    calls beyond wait. `transport`: instead of connections of its own, with whatever retries and limits that has.

    Raises `ValueError` for an address that is none.
    """

    def __init__(
        self,
        base_url: Optional[str] = None,
        *,
        timeout: float = 5.0,
        connect_retries: int = 1,
        max_connections: int = 100,
        transport: Optional[httpx.AsyncBaseTransport] = None,
    ) -> None:
        self.base_url = _checked_url(base_url or os.environ.get("TOLLGATE_URL") or DEFAULT_URL)
        self._timeout = timeout
        self._connect_retries = connect_retries
        self._limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        self._transport = transport
        self._pools: Dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    async def initialize(self) -> None:
        """Makes the pool ready. Asks nothing: the gateway may start later than the app."""
        self._pool()

    async def aclose(self) -> None:
        """Closes this event loop's connections. A later call opens new ones."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    async def __aenter__(self) -> "UserManagerClient":
        await self.initialize()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.aclose()

    async def verify_user(self, api_key: str, client_ip: Optional[str] = None) -> UserInfo:
        """Whose key this is. Charges what the gateway's `verify_key.cost` says, which is a conversation by default.

        `client_ip` is what networks, address rules and rates are judged by, if the gateway trusts this app's address as
        a proxy's; what is not an IP address is not sent. Raises `TollgateError` for everybody who may not.
        """
        answer = _read(await self._post("/v1/auth/verify-key", api_key, client_ip))
        left = answer.get("remaining_conversations")
        known = isinstance(answer.get("user_id"), int) and isinstance(answer.get("username"), str)
        if answer.get("valid") is not True or not known or not isinstance(left, (int, float)):
            raise errors.not_a_gateway()
        return cast(UserInfo, answer)

    async def log_conversation(
        self,
        api_key: str,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        response: Optional[str] = None,
        research_model: bool = False,
        r_type: Optional[str] = None,
        input_tokens: Optional[int] = None,
        output_tokens: Optional[int] = None,
        processing_time_ms: Optional[int] = None,
        *,
        client_ip: Optional[str] = None,
        raise_errors: bool = False,
    ) -> bool:
        """Hands in a conversation; true when it is kept. Costs nothing.

        False when this user's conversations are not kept, and also, with a warning in the log `tollgate_client`, when
        it could not be handed in: the user has paid for the answer and is to get it. `raise_errors` raises
        `TollgateError` instead.
        """
        conversation = {
            "model": model,
            "messages": messages,
            "response": response,
            "research_model": research_model,
            "r_type": r_type,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "processing_time_ms": processing_time_ms,
        }
        # Half a surrogate pair, which users can send, must fail at the gateway and not here: so escapes, not UTF-8.
        body = json.dumps({name: value for name, value in conversation.items() if value is not None}).encode()
        try:
            answer = _read(await self._post("/v1/auth/log-message", api_key, client_ip, body))
        except errors.TollgateError as error:
            if raise_errors:
                raise
            _log.warning("A conversation is not in the gateway's log (request %s): %s", error.request_id, error)
            return False
        return answer.get("logged") is True

    async def validate_user(self, token: str, client_ip: Optional[str] = None) -> Dict[str, Any]:
        """Whose session token this is, with `valid`; `{"valid": False, …}` if it is nobody's. Costs nothing.

        Raises `TollgateError` for any other refusal, and when the gateway cannot be asked.
        """
        if not _is_plausible(token):
            return {"success": False, "valid": False, "error_code": "UNAUTHENTICATED"}
        response = await self._post("/api/users/validate-token", token, client_ip)
        refused = _object(response)
        if response.status_code == 401 and refused is not None:
            return {**refused, "valid": False}
        answer = _read(response)
        if answer.get("valid") is not True:
            raise errors.not_a_gateway()
        return answer

    def _pool(self) -> httpx.AsyncClient:
        # Connections belong to the event loop that opened them, and frameworks' test clients run one after another.
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for ended in [other for other in list(self._pools) if other.is_closed()]:
                self._pools.pop(ended, None)
            # Only connecting is tried again: what was sent may have been charged.
            transport = self._transport or httpx.AsyncHTTPTransport(limits=self._limits, retries=self._connect_retries)
            # A key is not for the proxies of the environment, nor for wherever a redirect points.
            pool = httpx.AsyncClient(
                base_url=self.base_url,
                timeout=self._timeout,
                transport=transport,
                trust_env=False,
                follow_redirects=False,
            )
            self._pools[loop] = pool
        return pool

    async def _post(
        self, path: str, credential: str, client_ip: Optional[str], body: Optional[bytes] = None
    ) -> httpx.Response:
        if not _is_plausible(credential):
            raise errors.unauthenticated()
        headers = {"Authorization": f"Bearer {credential}"}
        address = _address(client_ip)
        if address is not None:
            headers["X-Forwarded-For"] = address
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            sent = self._pool().post(path, headers=headers, content=body)
            return await asyncio.wait_for(sent, self._timeout)
        except (httpx.HTTPError, asyncio.TimeoutError) as error:
            _log.warning("The gateway at %s cannot be asked: %r", self.base_url, error)
            raise errors.unreachable() from error


@functools.lru_cache(maxsize=None)
def default_client() -> UserManagerClient:
    """The one that routes without a client of their own and `validate_user` share: made at the first use, for the
    environment's address. An app that cares closes its connections at the end: `await default_client().aclose()`."""
    return UserManagerClient()


async def validate_user(token: str) -> Dict[str, Any]:
    """As `UserManagerClient.validate_user`, of the gateway at `TOLLGATE_URL`."""
    return await default_client().validate_user(token)


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"The gateway's address is not a URL ({error})") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        # Not the text itself: there may be a password in it.
        raise ValueError("The gateway's address must be http://HOST:PORT or https://HOST:PORT, with at most a path")
    return text


def _is_plausible(credential: str) -> bool:
    return 0 < len(credential) <= _MAX_CREDENTIAL and all("!" <= letter <= "~" for letter in credential)


def _address(text: Optional[str]) -> Optional[str]:
    # A zone (fe80::1%eth0) means something on this machine only.
    bare = (text or "").split("%", 1)[0]
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


def _object(response: httpx.Response) -> Optional[Dict[str, Any]]:
    try:
        value = response.json()
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read(response: httpx.Response) -> Dict[str, Any]:
    """The answer, if it is one that lets somebody go on. Whatever else comes is raised."""
    answer = _object(response)
    if answer is not None and response.status_code == 200:
        return answer
    code = (answer or {}).get("error_code")
    if answer is None or response.status_code < 400 or not isinstance(code, str):
        _log.warning("%s answered %d, and not as a gateway does", response.url, response.status_code)
        raise errors.not_a_gateway()
    message, listed, limits, details = (answer.get(name) for name in ("message", "errors", "limits", "details"))
    names = ("Retry-After", "WWW-Authenticate")
    raise errors.refusal(
        response.status_code,
        code,
        message if isinstance(message, str) else code,
        errors=[str(line) for line in listed] if isinstance(listed, list) else [],
        limits=limits if isinstance(limits, dict) else None,
        request_id=details.get("request_id") if isinstance(details, dict) else None,
        headers={name: response.headers[name] for name in names if name in response.headers},
    )
