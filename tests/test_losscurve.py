"""The figure of a run's losses: what it shows, and that equal runs draw equal files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuner.losscurve import draw_losses
from tuner.schedule import Progress

PROGRESS = Progress(step=4, steps=4, validation=[(2, 2.5), (4, 2.0)], best_step=4, losses=[3.0, 2.0, 2.0, 1.0])


def drawn(progress: Progress, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The lines of the figure by their label."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    draw_losses(progress, folder / "losses.png")
    (axes,) = figures[0].axes
    return {line.get_label(): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines}


def test_it_shows_steps_their_mean_and_the_held_out_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(PROGRESS, monkeypatch, tmp_path)
    assert lines["a step"] == [(1, 3.0), (2, 2.0), (3, 2.0), (4, 1.0)]
    # By hand: 3, then 0.95 of it and 0.05 of the next, and so on.
    assert [place for place, _ in lines["running mean"]] == [1, 2, 3, 4]
    assert [loss for _, loss in lines["running mean"]] == pytest.approx([3.0, 2.95, 2.9025, 2.807375])
    assert lines["held-out rows"] == [(2, 2.5), (4, 2.0)] and lines["kept"][0][0] == 4


def test_losses_that_begin_later_stand_at_their_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(replace(PROGRESS, losses=[2.0, 1.0], validation=[]), monkeypatch, tmp_path)
    assert lines["a step"] == [(3, 2.0), (4, 1.0)] and "held-out rows" not in lines


def test_equal_losses_give_equal_files(tmp_path: Path) -> None:
    for name, progress in (("a", PROGRESS), ("b", replace(PROGRESS)), ("c", replace(PROGRESS, losses=[3.0] * 4))):
        draw_losses(progress, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_run_without_steps_is_drawn_too(tmp_path: Path) -> None:
    draw_losses(Progress(), tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
