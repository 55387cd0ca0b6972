"""Refusals, as exceptions.

Owns what an app may read of a refusal, and which class it is raised as. Never holds a credential, nor where the
gateway is.
"""

import sys
from typing import Any, Mapping, Optional, Sequence


class TollgateError(Exception):
    """The gateway refused, or could not be asked.

    In programs that use FastAPI or Starlette it is an `HTTPException` of theirs as well.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        errors: Sequence[str] = (),
        limits: Optional[Mapping[str, Any]] = None,
        request_id: Optional[str] = None,
        headers: Optional[Mapping[str, str]] = None,
    ) -> None:
        # Not through super(): the framework's class may come next, and wants others. These are what pickle needs.
        Exception.__init__(self, status, code, message)
        #: The status to answer the app's own client with; 503 when the gateway could not be asked.
        self.status = status
        #: The gateway's `error_code`, or `GATEWAY_UNREACHABLE`, or `GATEWAY_ANSWER` for an answer that is no gateway's.
        self.code = code
        self.message = message
        #: One line for each thing that is wrong.
        self.errors = list(errors)
        #: With `CREDITS_EXHAUSTED`: which meter was short, what is left, and when it is set back.
        self.limits = limits
        #: Under which the gateway's log has the call.
        self.request_id = request_id
        #: Those that belong to the refusal: `Retry-After`, `WWW-Authenticate`.
        self.headers: Optional[Mapping[str, str]] = dict(headers or {})

    @property
    def retry_after(self) -> Optional[int]:
        """Seconds after which another try makes sense, if that is known."""
        seconds = (self.headers or {}).get("Retry-After", "")
        return int(seconds) if seconds.isascii() and seconds.isdigit() else None

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


def refusal(status: int, code: str, message: str, **more: Any) -> TollgateError:
    """The error to raise, of the class that this program can catch."""
    # Whoever has not loaded the framework cannot catch its exceptions, and need not pay for loading it.
    if sys.modules.get("starlette") is not None:
        from .web import HTTPRefusal

        return HTTPRefusal(status, code, message, **more)
    return TollgateError(status, code, message, **more)


def unauthenticated() -> TollgateError:
    """What the gateway says to a credential that cannot be one."""
    headers = {"WWW-Authenticate": 'Bearer realm="tollgate"'}
    return refusal(401, "UNAUTHENTICATED", "Invalid or missing credential", headers=headers)


def ambiguous(message: str) -> TollgateError:
    """What the gateway says to a request with more than one credential."""
    return refusal(400, "BAD_REQUEST", message)


def unreachable() -> TollgateError:
    return refusal(503, "GATEWAY_UNREACHABLE", "The user gateway cannot be reached")


def not_a_gateway() -> TollgateError:
    return refusal(503, "GATEWAY_ANSWER", "The user gateway gave an answer that cannot be understood")
