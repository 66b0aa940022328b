"""The multipart form of an upload -> a name, a file on the disk and groups; every part is bounded before it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from indexer.errors import TandemError
from service.keys import check_group

# A field that is no file is held in memory, so it is small.
FIELD_BYTES = 8192
FIELDS = 2
MAX_GROUPS = 100
_FIELDS = {
    "file": {"type": "string", "format": "binary"},
    "groups": {"type": "string", "description": "Groups of which a reader needs one, separated by commas."},
}
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": _FIELDS}}},
    }
}


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator[tuple[str, BinaryIO, Sequence[str] | None]]:
    """The file's name as it was sent, the file, and the groups (None: the field was not sent).

    Over a megabyte the file is on the disk and not in memory. Raises TandemError for any other form.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise _unreadable("It is not multipart/form-data.")
    try:
        form = await request.form(max_files=1, max_fields=FIELDS, max_part_size=FIELD_BYTES)
    except HTTPException as error:
        if error.status_code == 413:
            raise
        raise _unreadable("It is malformed, or has other parts than these.") from error
    except ClientDisconnect as error:
        raise _unreadable("It was cut off.") from error
    except OSError as error:
        raise TandemError(
            "There is no room for the upload.", do="Free some space on the disk.", code="unavailable"
        ) from error
    try:
        if set(form) - _FIELDS.keys() or len(form.multi_items()) != len(set(form)):
            raise _unreadable("It has other fields than these, or one of them twice.")
        file, groups = form.get("file"), form.get("groups")
        if not isinstance(file, UploadFile) or isinstance(groups, UploadFile):
            raise _unreadable("It has no file.")
        yield file.filename or "", file.file, None if groups is None else _groups(groups)
    finally:
        await form.close()


def _groups(text: str) -> list[str]:
    groups = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if len(groups) > MAX_GROUPS:
        raise TandemError("The upload has too many groups.", expected=f"At most {MAX_GROUPS}.", code="too_large")
    return [check_group(group) for group in groups]


def _unreadable(why: str) -> TandemError:
    return TandemError(
        f"The upload cannot be read. {why}",
        expected="multipart/form-data with the field `file`, and `groups` if only some may read it.",
        do="Send it as in `curl -F file=@handbook.pdf`.",
    )
