"""Text that a page keeps from its readers is taken out: an order to a model hides where no person looks.

What hides: the attribute `hidden`, `aria-hidden`, and in an element's own style display, visibility, opacity and
font-size. Sizes and visibility are inherited and can be set anew (CSS 2.2, sections 11.2 and 15.7): pages set a size of
nothing around columns to close the gaps between them, and the text in the columns has its own size and stays.
Style sheets, positions and colours are not looked at.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

# Pixels: what is smaller is no letter on any screen.
READABLE = 2.0
# A share of the full colour that no eye tells from none.
FAINT = 0.05
# CSS Values 3, section 6.2; rem is that of browsers.
_PIXELS = {"px": 1.0, "pt": 96 / 72, "pc": 16.0, "in": 96.0, "cm": 96 / 2.54, "mm": 9.6 / 2.54, "rem": 16.0}
_NORMAL = 16.0
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?(?P<unit>[a-z%]*)")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_ESCAPE = re.compile(r"\\([0-9a-f]{1,6})\s?", re.IGNORECASE)


def drop_hidden(root: Element) -> bool:
    """Take hidden text out of a tree (lxml or xml.etree); whether there was any."""
    found = False
    waiting: list[tuple[Element, float, bool]] = [(root, *_shown(_style(root), _NORMAL, True))]
    while waiting:
        node, size, visible = waiting.pop()
        before: Element | None = None
        for child in list(node):
            style = _style(child)
            if _is_gone(child, style):
                found = True
                _remove(node, child, before)
                continue
            before = child
            waiting.append((child, *_shown(style, size, visible)))
        if size < READABLE or not visible:
            found = _blank(node) or found
    return found


def _is_gone(node: Element, style: dict[str, str]) -> bool:
    """Whether the element is not shown with anything in it."""
    if not isinstance(node.tag, str):
        return False
    if node.get("hidden") is not None or (node.get("aria-hidden") or "").lower() == "true":
        return True
    return style.get("display") == "none" or _amount(style.get("opacity", "")) < FAINT


def _shown(style: dict[str, str], size: float, visible: bool) -> tuple[float, bool]:
    """Pixels and visibility of the text in an element, from its style and those of the element around it."""
    visibility = style.get("visibility", "inherit")
    if visibility in ("hidden", "collapse", "visible"):
        visible = visibility == "visible"
    return _pixels(style.get("font-size", "inherit"), size), visible


def _pixels(value: str, inherited: float) -> float:
    match = _NUMBER.fullmatch(value)
    if match is None:
        return inherited if value in ("inherit", "unset", "smaller", "larger") else _NORMAL
    unit = match["unit"]
    number = float(value.removesuffix(unit))
    if number == 0:
        return 0.0
    relative = {"em": number, "ex": number / 2, "ch": number / 2, "%": number / 100}
    if unit in relative:
        return relative[unit] * inherited
    # A number without a unit is no size, so it changes nothing; units of the window are taken for normal.
    return inherited if unit == "" else number * _PIXELS[unit] if unit in _PIXELS else _NORMAL


def _amount(value: str) -> float:
    """An opacity; 1 for what is none."""
    match = _NUMBER.fullmatch(value)
    if match is None or match["unit"] not in ("", "%"):
        return 1.0
    return float(value.removesuffix("%")) / (100 if match["unit"] else 1)


def _style(node: Element) -> dict[str, str]:
    """The declarations of the element's own style: the last of a name counts, unless one before it is important."""
    text = node.get("style") if isinstance(node.tag, str) else None
    if not text:
        return {}
    plain = _ESCAPE.sub(lambda match: _character(match[1]), _COMMENT.sub("", text)).lower()
    found: dict[str, str] = {}
    important: set[str] = set()
    for part in plain.split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        value, mark, _ = value.partition("!")
        if mark:
            important.add(name)
        if mark or name not in important:
            found[name] = value.strip()
    return found


def _character(code: str) -> str:
    number = int(code, 16)
    return chr(number) if 0 < number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"


def _remove(node: Element, child: Element, before: Element | None) -> None:
    """Take the child out; the text behind it belongs to the element around it."""
    tail = child.tail or ""
    node.remove(child)
    if before is None:
        node.text = (node.text or "") + tail
    else:
        before.tail = (before.tail or "") + tail


def _blank(node: Element) -> bool:
    """Replace the text that is the element's own by a space; whether there was any."""
    found = bool((node.text or "").strip())
    node.text = " "
    for child in node:
        found = found or bool((child.tail or "").strip())
        child.tail = " "
    return found
