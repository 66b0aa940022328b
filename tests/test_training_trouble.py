"""What the training loop keeps when something goes wrong: no number where a loss should be, no room on the disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import save_small_model
from tuning_rows import make_rows

from indexer.errors import TandemError
from tuner import train as loop
from tuner.basemodel import load_base_model
from tuner.grouploss import find_reading
from tuner.groups import encode_rows
from tuner.objective import Supervised
from tuner.recipe import Recipe
from tuner.schedule import Progress, Schedule
from tuner.train import Training, train
from tuner.trainable import make_trainable

# A checkpoint at every step.
SCHEDULE = Schedule(epochs=2, accumulation=1, validations=2, precision="float32", seconds=0.0, seed=5)
PLAIN = Recipe("lora", r=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("base"), window=2048)


@pytest.fixture
def training(folder: Path) -> Training:
    return prepared(folder)


def prepared(folder: Path, recipe: Recipe = PLAIN) -> Training:
    base = load_base_model(str(folder), cache=folder / "cache", device="cpu")
    trainable = make_trainable(base, recipe)
    groups = encode_rows(base.tokenizer, make_rows(8), limit=1900).groups
    reading = find_reading(trainable.model, "none", shared=not recipe.gradient_checkpointing)
    schedule = replace(SCHEDULE, learning_rate=recipe.learning_rate)
    objective = Supervised(trainable.model, reading)
    return Training(trainable.model, trainable.parameters, objective, groups, groups[:2], schedule)


def weights(training: Training) -> dict[str, Any]:
    return {name: parameter.detach().clone() for name, parameter in training.parameters.items()}


def blow_up(training: Training) -> None:
    """What a step that is far too large leaves: finite numbers whose products are none."""
    import torch

    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.fill_(1e38)


def kept(checkpoint: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    values = load_file(checkpoint)
    return {name.removeprefix("now/"): value for name, value in values.items() if name.startswith("now/")}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(bool((value == right[name]).all()) for name, value in left.items())


def at(step: int, change: Callable[[], None]) -> Callable[[Progress], None]:
    return lambda progress: change() if progress.step == step else None


def test_parameters_that_blew_up_never_replace_the_last_good_checkpoint(training: Training, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def look(progress: Progress) -> None:
        seen.append(weights(training))
        if progress.step == 3:
            blow_up(training)

    with pytest.raises(TandemError, match="loss is no longer a number at step 4 of 8") as error:
        train(training, tmp_path / "c.safetensors", report=look)
    assert "is kept" in error.value.happened and "--learning-rate (now 0.0004)" in error.value.do
    assert same(kept(tmp_path / "c.safetensors"), seen[1])


def test_without_a_checkpoint_the_error_says_so(training: Training, tmp_path: Path) -> None:
    training = replace(training, schedule=replace(training.schedule, seconds=1000.0))
    with pytest.raises(TandemError, match="There is no checkpoint yet"):
        train(training, tmp_path / "c.safetensors", report=at(3, lambda: blow_up(training)))
    assert not list(tmp_path.iterdir())


def test_a_held_out_loss_that_is_no_number_stops_the_run_and_is_no_best(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = loop._step, [weights(training)]

    def fourth(training: Training, optimiser: Any, progress: Progress) -> None:
        step(training, optimiser, progress)
        seen.append(weights(training))
        if progress.step == 3:
            blow_up(training)

    monkeypatch.setattr(loop, "_step", fourth)
    with pytest.raises(TandemError, match="held-out loss is no longer a number at step 4 of 8"):
        train(training, tmp_path / "c.safetensors")
    assert same(kept(tmp_path / "c.safetensors"), seen[3])
    progress = Progress()
    assert not progress.improves(math.nan) and not progress.improves(math.inf) and progress.improves(3.0)
    progress.validation.append((1, 3.0))
    assert not progress.improves(math.nan) and progress.improves(2.0) and not progress.improves(3.0)


def test_where_only_the_gradient_is_no_number_the_parameters_are_saved(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = replace(training, schedule=replace(training.schedule, seconds=1000.0))
    parameter = next(iter(training.parameters.values()))

    def spoil() -> None:
        parameter.register_hook(lambda gradient: gradient * math.inf)

    with pytest.raises(TandemError, match="gradient is no longer a number at step 4 of 8"):
        train(training, tmp_path / "c.safetensors", report=at(3, spoil))
    assert same(kept(tmp_path / "c.safetensors"), weights(training))


def test_a_lower_rate_and_gradient_checkpointing_go_on_from_a_checkpoint(
    folder: Path, training: Training, tmp_path: Path
) -> None:
    stopped = iter((False, False, True))
    with pytest.raises(TandemError, match="stopped at step 2 of 8"):
        train(training, tmp_path / "c.safetensors", stop=lambda: next(stopped))
    other = prepared(folder, Recipe("lora", r=4, learning_rate=1e-5, gradient_checkpointing=True))
    steps: list[int] = []
    train(other, tmp_path / "c.safetensors", report=lambda progress: steps.append(progress.step))
    assert steps == list(range(3, 9))


@pytest.mark.parametrize("last", [False, True], ids=["on the way", "at the end"])
def test_a_full_disk_is_told_and_the_training_goes_on(
    last: bool, folder: Path, training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    checkpoint = tmp_path / "c.safetensors"
    whole = prepared(folder)
    train(whole, tmp_path / "whole" / "c.safetensors")
    real = safetensors.torch.save_file
    states: list[bytes] = []
    told: list[str] = []
    left: list[bool] = []
    failing = 9 if last else 4

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata)
        states.append(path.read_bytes())
        if len(states) == failing:
            path.write_bytes(states[-1][:100])
            raise OSError(28, "No space left on device")

    def tell(text: str) -> None:
        told.append(text)
        left.append(checkpoint.read_bytes() == states[-2] and list(tmp_path.glob("*.*")) == [checkpoint])

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    progress = train(training, checkpoint, tell=tell)
    assert progress.step == 8 and len(states) == 9 and left == [True]
    assert "No space left on device" in told[0] and "before it is whole" in told[0] and "ree space" in told[0]
    assert ("tries again" in told[0]) is not last
    assert same(weights(training), weights(whole))
    assert checkpoint.read_bytes() == states[-2 if last else -1]
