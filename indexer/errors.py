"""The one exception people see: what happened, what was expected, what to do."""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal[
    "invalid_request",  # the caller sent something that cannot work
    "unauthorized",  # no key, or a key that is not known
    "forbidden",  # a known key that may not do this
    "not_found",  # a name or id that does not exist
    "conflict",  # true of the request, but not now: locked, already running
    "no_answer",  # the documents do not hold what was to be given in a fixed form
    "too_large",  # over a stated limit
    "rate_limited",  # too many requests for now
    "unavailable",  # not ready yet, or something it needs is missing
    "timeout",  # a stated deadline passed
]


class TandemError(Exception):
    """A mistake or a missing thing that a person can mend; never a bug.

    The command line prints it without a traceback and exits with 2; HTTP maps `code` to a status.
    `str(error)` is the three parts joined by spaces. `retry_after` is when to try again, in seconds, if that is known.
    """

    def __init__(
        self,
        happened: str,
        *,
        expected: str = "",
        do: str = "",
        code: ErrorCode = "invalid_request",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(" ".join(part for part in (happened, expected, do) if part))
        self.happened = happened
        self.expected = expected
        self.do = do
        self.code: ErrorCode = code
        self.retry_after = retry_after
