"""Which adapter answers when a request names none: one small file, replaced atomically; else the default adapter.

The default adapter comes with the package (tuner/default/). It was tuned on the bundled base model, so it is active
only with that one, and only until another is activated or it is deactivated.
"""

from __future__ import annotations

import json
from pathlib import Path

from indexer.folders import write_file
from tuner.adapters import DEFAULT_ADAPTER, adapter_path, has_default, read_card

_FILE = "active.json"


def active_adapter(home: Path, base_model: str = "bundled") -> str | None:
    """The name of the active adapter of `home` where `base_model` (as in the settings) is served, or None."""
    try:
        name = json.loads((home / "adapters" / _FILE).read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_ADAPTER if base_model == "bundled" and has_default() else None
    return name if isinstance(name, str) else None


def activate(home: Path, name: str, *, against: str = "") -> None:
    """Make `name` the active adapter. Raises TandemError when there is no such adapter, or none that is whole.

    `against` is the verdict that it is activated in spite of; it is kept.
    """
    read_card(adapter_path(home, name))
    forced = {"forced_against": against} if against else {}
    write_file(home / "adapters" / _FILE, json.dumps({"name": name, **forced}).encode())


def was_forced(home: Path) -> bool:
    """Whether the active adapter was activated in spite of a verdict."""
    try:
        return bool(json.loads((home / "adapters" / _FILE).read_text()).get("forced_against"))
    except (OSError, ValueError, AttributeError):
        return False


def deactivate(home: Path) -> None:
    """No adapter is active afterwards, the default one included."""
    write_file(home / "adapters" / _FILE, json.dumps({"name": None}).encode())
