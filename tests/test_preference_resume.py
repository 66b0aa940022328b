"""A DPO run that was cut off and resumed ends where one that was not does: its reference is the model at step 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_models import save_small_model
from tuning_rows import Stop, make_rows

from indexer.errors import TandemError
from service.commands import tune
from service.commands.rows import RowSources
from service.commands.tune import Request, run_tune
from service.settings import Settings
from tuner import forgetting
from tuner.recipe import Recipe
from tuner.rowfile import write_rows

QUICK: dict[str, Any] = {"epochs": 2, "r": 4, "validation_share": 0.4, "validations": 2, "precision": "float32"}


@pytest.mark.parametrize("steps", [1, 4])
def test_a_resumed_run_equals_one_that_was_not_cut_off(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "QUESTIONS", forgetting.QUESTIONS[:1])
    base = save_small_model(tmp_path / "base", window=2048)
    settings = Settings(home=tmp_path / "home", weights=tmp_path / "weights", base_model=str(base), threads=1)
    write_rows(tmp_path / "rows.jsonl", make_rows(24))
    sources = RowSources(rows=(tmp_path / "rows.jsonl",))
    run_tune(settings, Request(Recipe("lora", learning_rate=5e-3, **QUICK), sources, name="first"), as_json=True)
    recipe = Recipe("dpo", learning_rate=1e-3, start_from="first", **QUICK)
    body = run_tune(settings, Request(recipe, sources, name="whole"), as_json=True)
    assert body["metrics"]["steps"] > steps

    @contextmanager
    def stopping() -> Iterator[Stop]:
        yield Stop(steps)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "stopping", stopping)
        with pytest.raises(TandemError, match=f"stopped at step {steps} of"):
            run_tune(settings, Request(recipe, sources, name="cut"), as_json=True)
    resumed = run_tune(settings, Request(None, name="cut", resume=True), as_json=True)
    folders = [settings.home / "adapters" / name for name in ("first", "whole", "cut")]
    first, whole, cut = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert whole == cut != first
    for measure in ("train_loss", "validation_loss_before", "validation_loss_after", "validation_losses"):
        assert resumed["metrics"][measure] == body["metrics"][measure]
