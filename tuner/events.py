"""Losses and rates as TensorBoard event files, when they are asked for."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from indexer.errors import TandemError
from tuner.schedule import Progress


def find_writer() -> Any:
    """The class that writes them. Raises TandemError (unavailable) when the package tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TandemError(
            "--tensorboard needs the package tensorboard, which is not installed.",
            expected="Tandem with its extra: pip install 'tandem-qa[tensorboard]'.",
            do="Install it, or leave --tensorboard out.",
            code="unavailable",
        ) from error
    return SummaryWriter


class Events:
    """A writer of event files to `folder`; without `wanted` it writes nothing."""

    def __init__(self, folder: Path, *, wanted: bool) -> None:
        self._writer: Any = find_writer()(str(folder)) if wanted else None
        self._validations = 0

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, progress: Progress) -> None:
        """The running loss and tokens/s of a step, and the held-out loss when it was measured."""
        if self._writer is None:
            return
        self._writer.add_scalar("loss", progress.loss, progress.step)
        self._writer.add_scalar("tokens_per_second", progress.tokens / max(progress.seconds, 1e-9), progress.step)
        for step, loss in progress.validation[self._validations :]:
            self._writer.add_scalar("validation_loss", loss, step)
        self._validations = len(progress.validation)
