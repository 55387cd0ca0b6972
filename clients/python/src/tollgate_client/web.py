"""Routes of FastAPI and Starlette for users with a key.

Owns how a request's key is found and where the route finds its user. Without Starlette it cannot be imported.
"""

# FastAPI reads the signatures here at run time, older ones only without postponed annotations.

import functools
import inspect
import typing
from typing import Any, Callable, Coroutine, Mapping, Optional, overload

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

if typing.TYPE_CHECKING:
    from starlette.exceptions import HTTPException
else:
    # FastAPI's own is what its users catch; Starlette's is the base of it.
    try:
        from fastapi import HTTPException
    except ImportError:
        from starlette.exceptions import HTTPException

from . import errors
from .client import UserInfo, UserManagerClient, default_client

Route = Callable[..., Any]
GuardedRoute = Callable[..., Coroutine[Any, Any, Any]]


class HTTPRefusal(errors.TollgateError, HTTPException):
    """A refusal that the framework makes the answer of: the gateway's status, its message as `detail`, its headers."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        errors.TollgateError.__init__(self, status, code, message, **more)
        HTTPException.__init__(self, status_code=status, detail=message, headers=self.headers)


class ApiKeyUser:
    """A dependency of FastAPI: `user: UserInfo = Depends(ApiKeyUser())`. Charges as `verify_user` does.

    Without `client` it asks the gateway at `TOLLGATE_URL`.
    """

    def __init__(self, client: Optional[UserManagerClient] = None) -> None:
        self._client = client

    async def __call__(self, request: Request) -> UserInfo:
        client_ip = request.client.host if request.client else None
        user = await (self._client or default_client()).verify_user(_key_of(request), client_ip)
        request.state.user = user
        request.state.remaining_conversations = user["remaining_conversations"]
        return user


@overload
def require_api_key(route: Route) -> GuardedRoute: ...


@overload
def require_api_key(*, client: Optional[UserManagerClient] = None) -> Callable[[Route], GuardedRoute]: ...


def require_api_key(
    route: Optional[Route] = None, *, client: Optional[UserManagerClient] = None
) -> "GuardedRoute | Callable[[Route], GuardedRoute]":
    """Lets only users with a key that works call the route, and charges them as `verify_user` does.

    The route, `async` or not, has a parameter `request: Request`, and finds the user in `request.state.user` and
    `request.state.remaining_conversations`. Without `client` the gateway at `TOLLGATE_URL` is asked. Goes below the
    framework's decorator. Raises `TypeError` for a route without a request.
    """
    if route is None:
        return functools.partial(_guard, user_of=ApiKeyUser(client))
    return _guard(route, user_of=ApiKeyUser(client))


def _guard(route: Route, user_of: ApiKeyUser) -> GuardedRoute:
    signature = _signature(route)
    at, name = _request_of(route, signature)

    @functools.wraps(route)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        await user_of(kwargs[name] if name in kwargs else args[at])
        is_async = inspect.iscoroutinefunction(route)
        answer = route(*args, **kwargs) if is_async else await run_in_threadpool(route, *args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    # The framework would look for the names of postponed annotations in this module.
    setattr(guarded, "__signature__", signature)
    return guarded


def _signature(route: Route) -> inspect.Signature:
    signature = inspect.signature(route)
    try:
        hints: Mapping[str, Any] = typing.get_type_hints(route, include_extras=True)
    except NameError:
        # Of something imported for type checkers only. The framework has to cope with it, as without this decorator.
        return signature
    parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=hints.get("return", signature.return_annotation))


def _request_of(route: Route, signature: inspect.Signature) -> "tuple[int, str]":
    for at, parameter in enumerate(signature.parameters.values()):
        kind = parameter.annotation
        if parameter.name == "request" or (isinstance(kind, type) and issubclass(kind, Request)):
            return at, parameter.name
    raise TypeError(f"{route.__qualname__} needs a parameter `request: Request` for @require_api_key")


def _key_of(request: Request) -> str:
    """The key, by the gateway's own rules; empty when there is none."""
    bearers, keys = request.headers.getlist("authorization"), request.headers.getlist("x-api-key")
    if len(bearers) > 1 or len(keys) > 1:
        raise errors.ambiguous("More than one credential in the request")
    found = {key.strip() for key in keys}
    for bearer in bearers:
        scheme, _, token = bearer.partition(" ")
        found.add(token.strip() if scheme.lower() == "bearer" else "")
    if len(found) > 1:
        raise errors.ambiguous("Two different credentials in one request")
    return found.pop() if found else ""
