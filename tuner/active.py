"""Which adapter answers when a request names none: one small file, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path

from indexer.folders import write_file
from tuner.adapters import adapter_path, read_card

_FILE = "active.json"


def active_adapter(home: Path) -> str | None:
    """The name of the active adapter of `home`, or None."""
    try:
        name = json.loads((home / "adapters" / _FILE).read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def activate(home: Path, name: str) -> None:
    """Make `name` the active adapter. Raises TandemError when there is no such adapter, or none that is whole."""
    read_card(adapter_path(home, name))
    write_file(home / "adapters" / _FILE, json.dumps({"name": name}).encode())


def deactivate(home: Path) -> None:
    """No adapter is active afterwards."""
    (home / "adapters" / _FILE).unlink(missing_ok=True)
