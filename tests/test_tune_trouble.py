"""`tandem tune` where something is wrong: the command, the disk, the settings of a run that is gone on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import save_small_model
from tuning_rows import Stop, make_rows
from typer.testing import CliRunner

from indexer.errors import TandemError
from service.cli import app
from service.commands import tune
from service.commands.rows import RowSources
from service.commands.tune import Request, run_tune
from service.settings import Settings
from tuner import finished, forgetting, runs, tuning
from tuner.adapters import read_card
from tuner.recipe import Recipe
from tuner.rowfile import write_rows

QUICK: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "r": 4, "validation_share": 0.3, "precision": "float32"}


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "QUESTIONS", forgetting.QUESTIONS[:1])


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("base"), window=2048)


@pytest.fixture
def settings(tmp_path: Path, base_folder: Path) -> Settings:
    return Settings(home=tmp_path / "home", weights=tmp_path / "weights", base_model=str(base_folder), threads=1)


@pytest.fixture
def sources(tmp_path: Path) -> RowSources:
    write_rows(tmp_path / "rows.jsonl", make_rows(24))
    return RowSources(rows=(tmp_path / "rows.jsonl",))


@pytest.fixture
def cut(settings: Settings, sources: RowSources) -> Path:
    """The folder of a run `first` that was stopped after a step."""
    cut_off(settings, Request(Recipe("lora", **QUICK), sources, name="first"))
    return settings.home / "tuning" / "first"


def cut_off(settings: Settings, request: Request) -> None:
    """Tune, and stop after a step."""

    @contextmanager
    def stopping() -> Iterator[Stop]:
        yield Stop(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "stopping", stopping)
        with pytest.raises(TandemError, match="stopped at step 1 of"):
            run_tune(settings, request, as_json=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def no_room(*_: object, **__: object) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("count", "recipe", "tensorboard", "said"),
    [
        (3, Recipe("lora", validation_share=0), False, "3 rows"),
        (24, Recipe("lora", target_modules="c_fc"), False, "no matrix called c_fc"),
        (24, Recipe("lora", target_modules="norm"), False, "no matrix called norm"),
        (24, Recipe("partial", layers=3), False, "--layers is 3"),
        (24, Recipe("lora"), True, "package tensorboard"),
    ],
)
def test_a_wrong_command_leaves_no_run_behind_and_an_older_one_as_it_was(
    count: int,
    recipe: Recipe,
    tensorboard: bool,
    said: str,
    settings: Settings,
    cut: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    before = files(cut)
    write_rows(tmp_path / "asked.jsonl", make_rows(count))
    asked = RowSources(rows=(tmp_path / "asked.jsonl",))
    for name in ("second", "first"):
        with pytest.raises(TandemError, match=said):
            request = Request(recipe, asked, name=name, force=name == "first", tensorboard=tensorboard)
            run_tune(settings, request, as_json=True)
    assert list(cut.parent.iterdir()) == [cut] and "checkpoint.safetensors" in before and files(cut) == before


def test_a_resumed_run_may_have_a_lower_rate_and_gradient_checkpointing_and_nothing_else(
    settings: Settings, sources: RowSources, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", settings.home), ("BASE_MODEL", settings.base_model), ("THREADS", 1)):
        monkeypatch.setenv(f"TANDEM_{name}", str(value))

    def resume(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["tune", "--resume", "--name", "first", *arguments])

    before = files(cut)
    same = ["--recipe", "lora", "--epochs", "2", "--r", "4", "--validation-share", "0.3", "--precision", "float32"]
    for arguments, said in (
        (["--r", "8"], "no recipe"),
        (["--learning-rate", "0.001", "--epochs", "3"], "no recipe"),
        ([*same, "--learning-rate", "0.001", "--alpha", "8"], "other settings: alpha."),
        # A rate that is not given is not a wish for the usual one.
        (same, "other settings: learning_rate."),
    ):
        result = resume(*arguments)
        assert result.exit_code == 2 and said in result.output.replace("\n", " ")
    assert files(cut) == before
    result = resume("--learning-rate", "0.001", "--gradient-checkpointing")
    assert result.exit_code == 0
    assert "read again for every row that shows them with gradient checkpointing" in result.output.replace("\n", " ")
    written = json.loads((cut / "finished.json").read_text())["recipe"]
    assert written == json.loads(before["recipe.json"])["recipe"] | {
        "learning_rate": 0.001,
        "gradient_checkpointing": True,
    }
    assert read_card(settings.home / "adapters" / "first").recipe["learning_rate"] == 0.001


def test_a_run_whose_checkpoints_and_figure_cannot_be_written_comes_to_its_result(
    settings: Settings, sources: RowSources, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import safetensors.torch

    real = safetensors.torch.save_file

    def full(tensors: Any, path: Path, *metadata: Any) -> None:
        if path.suffix == ".partial":
            no_room()
        real(tensors, path, *metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(tune, "draw_losses", no_room)
    body = run_tune(settings, Request(Recipe("lora", **QUICK), sources, name="first"), as_json=True)
    assert Path(body["folder"], "adapter_model.safetensors").is_file()
    told = capsys.readouterr().err.replace("\n", " ")
    assert "No space left on device" in told and "There is none before it" in told
    assert body["figure"] is None and "losses.png cannot be written" in told


@pytest.mark.parametrize(
    ("spoil", "what", "do"),
    [
        (lambda patch: patch.setattr(finished, "publish_folder", no_room), "The result", "--resume --name first"),
        (lambda patch: patch.setattr(tuning, "write_file", no_room), "What the base", "--resume --name first"),
        (lambda patch: patch.setattr(runs, "write_rows", no_room), "The run 'first'", "start it again"),
        (lambda patch: patch.setattr(runs, "write_file", no_room), "The run 'first'", "start it again"),
    ],
    ids=["result", "before.json", "rows", "recipe.json"],
)
def test_no_room_for_a_file_is_told_with_what_to_do(
    spoil: Callable[[pytest.MonkeyPatch], None],
    what: str,
    do: str,
    settings: Settings,
    sources: RowSources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Request(Recipe("lora", **QUICK), sources, name="first")
    with monkeypatch.context() as patch:
        spoil(patch)
        with pytest.raises(TandemError, match="cannot be written.*No space left on device") as error:
            run_tune(settings, first, as_json=True)
    assert error.value.happened.startswith(what) and do in error.value.do and error.value.code == "unavailable"
    assert ("checkpoint is kept" in error.value.happened) is (what == "The result")
    again = Request(None, name="first", resume=True) if "--resume" in do else first
    assert run_tune(settings, again, as_json=True)["name"] == "first"


def test_a_run_goes_on_only_from_the_adapter_that_it_started_from(settings: Settings, sources: RowSources) -> None:
    first = Request(Recipe("lora", **QUICK), sources, name="first")
    run_tune(settings, first, as_json=True)
    further = Recipe("lora", start_from="first", **{key: QUICK[key] for key in QUICK if key != "r"})
    cut_off(settings, Request(further, sources, name="second"))
    run_tune(settings, replace(first, recipe=Recipe("lora", seed=1, **QUICK), force=True), as_json=True)
    with pytest.raises(TandemError, match="'first' is not the one that the run 'second' was started from"):
        run_tune(settings, Request(None, name="second", resume=True), as_json=True)
