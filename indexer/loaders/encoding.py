"""Bytes to clean text: BOM, then UTF-8, then a guess; one newline; no invisible characters."""

from __future__ import annotations

import codecs
import re

from indexer.loaders.parsed import damaged

_BOMS = (  # UTF-32's little-endian mark begins with UTF-16's, so it is tried first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\r\x0b\x0c\x1b\x08")) + b"\x7f"
_CONTROL_SHARE = 0.05  # text in any 8-bit encoding has next to none; compressed or machine data has about a tenth
_SAMPLE_BYTES = 64 * 1024
_TIE = 0.15  # difference in charset-normalizer's measure of mess, 0 (clean) to 1
_HIGH_SHARE = 0.2  # of all bytes; scripts other than Latin are written almost wholly above 0x7F

# Windows and ISO code pages of Latin-script languages. Their accented letters are the exception among plain ASCII.
_LATIN = frozenset(
    [
        "cp1252",
        "cp1250",
        "cp1254",
        "cp1257",
        "cp1258",
        "latin_1",
        "iso8859_2",
        "iso8859_3",
        "iso8859_4",
        "iso8859_9",
        "iso8859_10",
        "iso8859_13",
        "iso8859_14",
        "iso8859_15",
        "iso8859_16",
    ]
)

# Removed: control characters, soft hyphen, zero-width and bidirectional marks, fillers, tag characters, lone surrogates
# and the byte order mark. They carry no words, hide text from the reader that a model would see, and break exact
# search. With the joiners and selectors below, these are all of Unicode's default ignorable characters (UAX #44).
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)
# The joiners spell words in Persian and Indic scripts and build emoji, so they go only beside ASCII, and in runs that
# no script has: two kinds of joiner write any message in bits.
_JOINERS = re.compile(
    "(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])|(?<=[\u200c\u200d]{2})[\u200c\u200d]+"
)
# Variation selectors choose a form of the one character before them, and with 256 of them a run writes any message in
# bytes. Before the keycap mark they follow a digit.
_SELECTOR = "[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
_SELECTORS = re.compile(f"(?<={_SELECTOR}){_SELECTOR}+|(?<![^\x00-\x7f]){_SELECTOR}(?!\u20e3)")
_REPLACEMENT = "\ufffd"  # what stands for a byte that could not be read: kept, it tells the reader so
_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def clean(text: str) -> str:
    """`text` with every newline as one line feed and without characters that a reader cannot see.

    Not Unicode-normalised: what a person finds in the file is what they find in the text.
    """
    text = _NEWLINES.sub("\n", text)
    return _JOINERS.sub("", _SELECTORS.sub("", _INVISIBLE.sub("", text)))


def decode(data: bytes, name: str) -> str:
    """Bytes of a text file to clean text; TandemError when they are not text."""
    return clean(decode_raw(data, name))


def decode_raw(data: bytes, name: str) -> str:
    """As `decode`, every character as it was: in JSON some that end a line elsewhere may stand inside a string."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    _refuse_binary(data, name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    forgiving = data.decode("utf-8", "replace")
    broken = forgiving.count(_REPLACEMENT)
    intact = sum(character > "\x7f" for character in forgiving) - broken
    if intact > 20 * broken:  # UTF-8 with a few damaged bytes, such as a log cut in the middle of a letter
        return forgiving
    return data.decode(_guess(data), "replace")


def decode_as(data: bytes, label: str | None, name: str) -> str:
    """Decode by a declared encoding label (HTML, mail); by `decode` when there is none or Python does not know it."""
    if not label or data.startswith(tuple(mark for mark, _ in _BOMS)):
        return decode(data, name)
    try:
        encoding = codecs.lookup(label.strip()).name
        # The web standard reads these two labels as their Windows superset.
        encoding = "cp1252" if encoding in ("iso8859-1", "ascii") else encoding
        return clean(data.decode(encoding, "replace"))
    except (LookupError, ValueError, UnicodeError):
        return decode(data, name)


def _refuse_binary(data: bytes, name: str) -> None:
    sample = data[:_SAMPLE_BYTES]
    controls = len(sample) - len(sample.translate(None, _CONTROL_BYTES))
    if b"\0" in sample or controls > _CONTROL_SHARE * len(sample):
        raise damaged(name, "it is not text (it holds bytes that no text file has)")


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    sample = data[:_SAMPLE_BYTES]
    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        return "cp1252"
    # Several pages often fit equally well; Western European is then by far the most likely.
    if any(match.chaos <= best.chaos + _TIE and "cp1252" in match.could_be_from_charset for match in matches):
        return "cp1252"
    # On short samples the statistics may answer an East Asian or Cyrillic page for a few accented letters.
    high = sum(byte > 0x7F for byte in sample)
    return best.encoding if best.encoding in _LATIN or high >= _HIGH_SHARE * len(sample) else "cp1252"
