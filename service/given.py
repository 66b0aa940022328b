"""What the environment or the settings file gives for one setting, as it stands there.

Checking all settings takes 0.06 s of the 0.28 s that a question to a running service would take of its own, and such a
question needs none of them but a key.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from indexer.errors import TandemError

SETTINGS_FILE = "tandem.toml"
PREFIX = "TANDEM_"


def given(name: str) -> str:
    """The text that is given for the setting `name`, the environment over the file; empty if there is none.

    Raises TandemError for a file that is not TOML.
    """
    wanted = f"{PREFIX}{name}".casefold()
    # Names of the environment are told apart by no case, as for all settings.
    for variable, value in os.environ.items():
        if variable.casefold() == wanted:
            return value
    try:
        file = tomllib.loads(Path(SETTINGS_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise unreadable(error) from error
    return str(file.get(name, ""))


def unreadable(error: Exception) -> TandemError:
    """The error of a settings file that is not TOML."""
    return TandemError(
        f"{SETTINGS_FILE} cannot be read: {error}.",
        expected="Lines like `k = 4`, as in TOML.",
        do="Correct the file.",
    )
