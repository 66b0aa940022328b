"""Mail: headers and body of a message (.eml), and of each message of a mailbox (.mbox)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import cast

from indexer.loaders.blocks import Writer
from indexer.loaders.encoding import decode_as
from indexer.loaders.formats import SUPPORTED, inner_suffix
from indexer.loaders.html import html_tree
from indexer.loaders.markup import write
from indexer.loaders.parsed import Parsed, damaged, one_line, stem

_SHOWN = ("From", "To", "Cc", "Date", "Subject")
_SEPARATOR = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\r\n\r\n))From [^\r\n]*\d{4}[^\r\n]*\r?\n")
_TEXT_ATTACHMENTS = frozenset({"text", "markdown", "csv"})


def parse(data: bytes, name: str) -> Iterator[Parsed]:
    """Bytes of an .eml file -> one document; of an .mbox file -> one for each message, named by its Message-ID."""
    if inner_suffix(name) != ".mbox":
        yield _message(data, name, None)
        return
    starts = list(_SEPARATOR.finditer(data))
    if not starts:
        raise damaged(name, 'it is not a mailbox (no line begins with "From ")')
    seen: set[str] = set()
    for number, start in enumerate(starts, 1):
        end = starts[number].start() if number < len(starts) else len(data)
        parsed = _message(data[start.end() : end], name, number)
        if parsed.record in seen:  # the same message filed twice
            continue
        seen.add(parsed.record or "")
        yield parsed


def _message(data: bytes, name: str, number: int | None) -> Parsed:
    message = message_from_bytes(data, policy=policy.default)
    headers = {key: _header(message, key) for key in _SHOWN}
    if not any(headers.values()):
        raise damaged(name, "it has no mail headers")
    writer = Writer()
    writer.heading(1, headers["Subject"])
    writer.verbatim("\n".join(f"{key}: {value}" for key, value in headers.items() if value and key != "Subject"))
    _body(message, writer, name)
    for part in message.walk():
        _attachment(part, writer, name)
    title = headers.pop("Subject") or stem(name)
    parsed = writer.parsed(title, "mail", {key.lower(): value for key, value in headers.items()})
    if number is None:
        return parsed
    record = one_line(_header(message, "Message-ID").strip("<> ")) or str(number)
    return Parsed(parsed.title, "mail", parsed.text, (), parsed.headings, parsed.metadata, record)


def _header(message: EmailMessage, key: str) -> str:
    """A header's text on one line; the standard parser raises on some broken ones, which then read as they stand."""
    try:
        return one_line(str(message.get(key) or ""))
    except (ValueError, IndexError, AttributeError, TypeError):
        return one_line(next((str(value) for field, value in message.raw_items() if field.lower() == key.lower()), ""))


def _body(message: EmailMessage, writer: Writer, name: str) -> None:
    """The plain-text alternative; the HTML one where it is missing or empty."""
    for kind in ("plain", "html"):
        part = message.get_body(preferencelist=(kind,))
        text = _content(cast(EmailMessage, part), name) if part is not None else ""
        if text.strip():
            _write(text, kind, writer, name)
            return


def _write(text: str, kind: str, writer: Writer, name: str) -> None:
    if kind == "html":
        write(html_tree(text, name), writer)
        return
    for paragraph in re.split(r"\n[ \t]*\n", text):
        writer.verbatim(paragraph)


def _attachment(part: EmailMessage, writer: Writer, name: str) -> None:
    """Attached text files; other attachments are only named."""
    filename = part.get_filename()
    if not filename or part.get_content_disposition() == "inline" and part.get_content_maintype() != "text":
        return
    writer.heading(2, f"Attachment: {one_line(filename)}")
    if part.get_content_maintype() == "text" and SUPPORTED.get(inner_suffix(filename)) in _TEXT_ATTACHMENTS:
        writer.verbatim(_content(part, name))


def _content(part: EmailMessage, name: str) -> str:
    payload = part.get_payload(decode=True)
    return decode_as(payload, part.get_content_charset(), name) if isinstance(payload, bytes) else ""
