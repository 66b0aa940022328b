"""Errors as clients of OpenAI expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from indexer.errors import ErrorCode, TandemError

PREFIX = "/v1"
# Where its statuses differ from ours. A client of OpenAI tries 409 again by itself, and here that never helps.
OPENAI_STATUS: dict[ErrorCode, int] = {"invalid_request": 400, "conflict": 400, "too_large": 400, "no_answer": 400}
_KINDS: dict[ErrorCode, str] = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "rate_limited": "rate_limit_error",
    "unavailable": "server_error",
    "timeout": "server_error",
}
_CODES: dict[ErrorCode, str] = {
    "unauthorized": "invalid_api_key",
    "too_large": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "unavailable": "overloaded",
}


class RequestError(TandemError):
    """A mistake in a request, with the name of the field that holds it and OpenAI's code for it, if there is one."""

    def __init__(
        self,
        happened: str,
        *,
        expected: str = "",
        do: str = "",
        code: ErrorCode = "invalid_request",
        param: str | None = None,
        named: str = "",
    ) -> None:
        super().__init__(happened, expected=expected, do=do, code=code)
        self.param = param
        self.named = named


def is_openai(path: str) -> bool:
    """Whether an address belongs to this interface."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def openai_error(error: TandemError, *, kind: str = "", code: str = "") -> dict[str, Any]:
    """The body of an error."""
    param, named = (error.param, error.named) if isinstance(error, RequestError) else (None, "")
    return {
        "error": {
            "message": str(error),
            "type": kind or _KINDS.get(error.code, "invalid_request_error"),
            "param": param,
            "code": code or named or _CODES.get(error.code, error.code),
        }
    }
