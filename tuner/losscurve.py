"""The losses of a run as a figure: every step, their running mean, the held-out rows, and the step that was kept."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from tuner.schedule import Progress, running_mean

_SIZE = (7.0, 4.0)
_DOTS_PER_INCH = 110


def draw_losses(progress: Progress, path: Path) -> None:
    """Write a PNG to `path`. Equal losses give the same file. Raises OSError when it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    # A run that was begun before losses were kept has those since it was resumed.
    first = progress.step - len(progress.losses) + 1
    steps = range(first, progress.step + 1)
    axes.plot(steps, progress.losses, ".", markersize=3, alpha=0.4, label="a step")
    axes.plot(steps, list(accumulate(progress.losses, running_mean)), label="running mean")
    if progress.validation:
        axes.plot(*zip(*progress.validation, strict=True), "o-", label="held-out rows")
        axes.axvline(progress.best_step, color="grey", linestyle="--", linewidth=0.8, label="kept")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    # Without the library's version the same numbers give the same file.
    figure.savefig(path, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
