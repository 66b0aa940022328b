"""What every command of the command line shares: settings, errors told in three lines, the --json option."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexer.errors import TandemError

if TYPE_CHECKING:
    from service.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def run(work: Callable[[], object], as_json: bool = False) -> Any:
    """Run a command; a mistake of the user's is told in three lines and ends with exit code 2."""
    try:
        return work()
    except TandemError as error:
        from service.commands.console import fail

        fail(error, as_json)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Nothing that was committed is lost.\n")
        raise typer.Exit(130) from None


def settings(**overrides: object) -> Settings:
    """The settings, with the options that were given over them."""
    from service.settings import load_settings

    return load_settings(**{name: value for name, value in overrides.items() if value is not None})
