"""Asks a tollgate gateway about the users of an app that the gateway does not forward to."""

from typing import TYPE_CHECKING, Any

from .client import UserInfo, UserManagerClient, default_client, validate_user
from .errors import TollgateError

if TYPE_CHECKING:
    from .web import ApiKeyUser, require_api_key

__all__ = [
    "ApiKeyUser",
    "TollgateError",
    "UserInfo",
    "UserManagerClient",
    "default_client",
    "require_api_key",
    "validate_user",
]


def __getattr__(name: str) -> Any:
    # These need Starlette, which not every app has.
    if name in ("ApiKeyUser", "require_api_key"):
        from . import web

        return getattr(web, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
