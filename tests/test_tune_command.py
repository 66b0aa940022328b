"""`tandem tune` from rows to a finished adapter or model: its card, its checks, and runs that were cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_models import save_small_model
from tuning_rows import make_rows
from typer.testing import CliRunner

from indexer.errors import TandemError
from service.cli import app
from service.commands.rows import RowSources
from service.commands.tune import Request, run_tune
from service.settings import Settings
from tuner import forgetting
from tuner.adapters import list_adapters, read_card, verify_adapter
from tuner.attach import AttachedAdapters
from tuner.basemodel import load_base_model
from tuner.prompt import PROMPT_FINGERPRINT
from tuner.questionhash import question_hash
from tuner.recipe import Recipe
from tuner.rowfile import write_rows
from tuner.rows import Row

QUICK = {"epochs": 2, "learning_rate": 5e-3, "r": 4, "validation_share": 0.3, "validations": 2, "precision": "float32"}


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


def tuned(settings: Settings, sources: RowSources, recipe: Recipe, name: str, **options: Any) -> dict[str, Any]:
    return run_tune(settings, Request(recipe, sources, name=name, **options), as_json=True)


def test_an_adapter_comes_out_with_its_card(settings: Settings, sources: RowSources) -> None:
    body = tuned(settings, sources, Recipe("lora", **QUICK), "first")
    folder = settings.home / "adapters" / "first"
    base = load_base_model(settings.base_model, cache=settings.weights_folder, device="cpu")
    card = verify_adapter(folder, base)
    assert card.prompt_fingerprint == PROMPT_FINGERPRINT and card.base_sha256 == base.sha256
    assert card.recipe["name"] == "lora" and card.recipe["counts"]["rows"] == body["counts"]["rows"]
    held, rows = body["counts"]["held_out"], body["counts"]["rows"]
    assert held > 0 and held + rows == 24
    assert set(card.recipe["questions_sha256"]) <= {question_hash(row.question) for row in make_rows(24)}
    assert card.metrics["validation_loss_after"] < card.metrics["validation_loss_before"]
    assert card.metrics["forgetting"]["perplexity_before"] > 0 and card.metrics["peak_bytes"] > 1e7
    assert body["counts"]["trainable_parameters"] < body["counts"]["total_parameters"]
    assert any("few" in warning for warning in body["warnings"])
    assert [item.name for item in list_adapters(settings.home) if item.name != "default"] == ["first"]
    attached = AttachedAdapters(base)
    attached.register("first", folder)
    import torch

    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = base.model(ids).logits
        with attached.selected("first"):
            assert not torch.equal(base.model(ids).logits, before)
    run = settings.home / "tuning" / "first"
    assert (run / "rows.jsonl").is_file() and not (run / "checkpoint.safetensors").exists()
    assert body["figure"] == str(run / "losses.png") and (run / "losses.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TandemError, match="already"):
        tuned(settings, sources, Recipe("lora", **QUICK), "first")
    with pytest.raises(TandemError, match="no run 'first'"):
        run_tune(settings, Request(None, name="first", resume=True), as_json=True)


def test_a_model_comes_out_of_full_and_can_be_served(settings: Settings, sources: RowSources) -> None:
    body = tuned(settings, sources, Recipe("full", **{**QUICK, "learning_rate": 1e-3}), "whole")
    folder = settings.home / "models" / "whole"
    assert body["kind"] == "model" and body["folder"] == str(folder)
    base = load_base_model(str(folder), cache=settings.weights_folder, device="cpu")
    first = load_base_model(settings.base_model, cache=settings.weights_folder, device="cpu")
    assert base.sha256 != first.sha256 and base.tokenizer_sha256 == first.tokenizer_sha256
    assert json.loads((folder / "card.json").read_text())["recipe"]["name"] == "full"


def test_dpo_trains_an_adapter_further(settings: Settings, sources: RowSources) -> None:
    tuned(settings, sources, Recipe("lora", **QUICK), "first")
    values = {**QUICK, "learning_rate": 1e-3, "validation_share": 0.4}
    body = tuned(settings, sources, Recipe("dpo", **values, start_from="first"), "second")
    card = read_card(settings.home / "adapters" / "second")
    assert body["counts"]["preference"] >= 8 and card.recipe["kind"] == "preferences"
    assert card.metrics["validation_loss_before"] == pytest.approx(0.6931, abs=1e-3)
    assert card.metrics["train_loss"] < 0.68
    with pytest.raises(TandemError, match="no adapter 'other'"):
        tuned(settings, sources, Recipe("dpo", **values, start_from="other"), "third")


def test_event_files_are_written_when_they_are_asked_for(settings: Settings, sources: RowSources) -> None:
    pytest.importorskip("tensorboard")
    tuned(settings, sources, Recipe("lora", **QUICK), "first", tensorboard=True)
    files = list((settings.home / "tuning" / "first" / "events").iterdir())
    assert len(files) == 1 and b"validation_loss" in files[0].read_bytes()


def test_without_tensorboard_asking_for_it_is_an_error(
    settings: Settings, sources: RowSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TandemError, match=r"package tensorboard") as error:
        tuned(settings, sources, Recipe("lora", **QUICK), "first", tensorboard=True)
    assert "tandem-qa[tensorboard]" in error.value.expected


def test_three_rows_are_too_few(settings: Settings, tmp_path: Path) -> None:
    write_rows(tmp_path / "few.jsonl", make_rows(3))
    with pytest.raises(TandemError, match="3 rows") as error:
        tuned(settings, RowSources(rows=(tmp_path / "few.jsonl",)), Recipe("lora", validation_share=0), "few")
    assert "At least 8" in error.value.expected


def test_pickled_weights_are_refused(settings: Settings, sources: RowSources, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "bin" / "config.json").write_text("{}")
    with pytest.raises(TandemError, match="pickled"):
        tuned(settings, sources, Recipe("lora"), "first", base_model=str(tmp_path / "bin"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "magic"], "no recipe 'magic'"),
        (["--recipe", "lora"], "nothing to make rows of"),
        (["--resume"], "which run"),
        (["--resume", "--name", "gone"], "no run 'gone'"),
        (["--r", "8"], "no recipe"),
        (["--recipe", "lora", "--batch-size", "4"], "--batch-size means nothing"),
        (["--recipe", "embedder", "--pairs", "p", "--r", "8"], "--r means nothing"),
        (["--recipe", "embedder"], "needs pairs"),
        (["--recipe", "lora", "--rows", "r", "--k", "3"], "--k means nothing"),
        (["--recipe", "lora", "--rows", "r", "--k", "0"], "--k means nothing"),
        (["--recipe", "lora", "--pairs", "p", "--k", "0"], "k is 0"),
        (["--recipe", "lora", "--rows", "r", "--learning-rate", "0"], "--learning-rate is 0"),
        (["--recipe", "lora", "--rows", "r", "--validation-share", "0", "--patience", "2"], "--patience means nothing"),
        (["--recipe", "lora", "--rows", "r", "--validation-share", "0", "--validations", "2"], "--validations means"),
        (["--recipe", "full", "--rows", "r", "--r", "8"], "--r means nothing"),
        (["--recipe", "lora", "--rows", "r", "--layers", "2"], "--layers means nothing"),
        (["--recipe", "dpo", "--rows", "r", "--start-from", "a", "--alpha", "8"], "--alpha means nothing"),
        (["--resume", "--name", "a", "--force"], "--force means nothing"),
        (["--recipe", "lora", "--name", "../x", "--rows", "r"], "cannot name"),
        (["--recipe", "lora", "--name", "default", "--rows", "r"], "comes with Tandem"),
    ],
)
def test_what_cannot_be_asked_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(app, ["tune", *arguments])
    assert result.exit_code == 2 and said in result.output.replace("\n", " ")


SLOW_STEPS = """
import time
from tuner import forgetting, schedule, train
forgetting.QUESTIONS = forgetting.QUESTIONS[:1]
step = train._step
def slow(*arguments):
    time.sleep(PAUSE)
    return step(*arguments)
train._step = slow
# A checkpoint after every step.
init = schedule.Schedule.__init__
init.__defaults__ = tuple(0.0 if value == 120.0 else value for value in init.__defaults__)
from service.cli import main
main()
"""


def command(settings: Settings, rows: Path, name: str, *more: str, pause: float = 0.0) -> list[str]:
    options = ["--recipe", "lora", "--rows", str(rows), "--name", name, "--epochs", "3", "--r", "4",
               "--learning-rate", "0.005", "--validation-share", "0.3", "--dropout", "0.1"]  # fmt: skip
    script = SLOW_STEPS.replace("PAUSE", str(pause))
    return [sys.executable, "-c", script, "tune", *options, *more]


def environment(settings: Settings) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    return kept | {
        "TANDEM_HOME": str(settings.home),
        "TANDEM_WEIGHTS": str(settings.weights_folder),
        "TANDEM_BASE_MODEL": settings.base_model,
        "TANDEM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped"])
def test_a_killed_run_resumed_is_the_run_that_was_not(
    settings: Settings, sources: RowSources, number: signal.Signals, tmp_path: Path
) -> None:
    rows, own = sources.rows[0], environment(settings)
    subprocess.run(command(settings, rows, "whole"), env=own, cwd=tmp_path, check=True, capture_output=True)
    process = subprocess.Popen(
        command(settings, rows, "cut", pause=0.5), env=own, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    checkpoint = settings.home / "tuning" / "cut" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.2)
    process.send_signal(number)
    _, log = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 2), log
    assert not (settings.home / "adapters" / "cut").exists() and checkpoint.exists()
    if number == signal.SIGINT:
        assert "its checkpoint is written" in log and "--resume" in log
    resume = [sys.executable, "-m", "service.cli", "tune", "--resume", "--name", "cut"]
    result = subprocess.run(resume, env=own, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    whole, cut = (settings.home / "adapters" / name / "adapter_model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    # The losses of the steps before the kill are drawn, too.
    drawn, again = (settings.home / "tuning" / name / "losses.png" for name in ("whole", "cut"))
    assert drawn.read_bytes() == again.read_bytes()


def test_a_resumed_run_must_be_asked_for_as_it_was(
    settings: Settings, sources: RowSources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from service.commands import tune

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tune, "tune", broken)
        with pytest.raises(KeyboardInterrupt):
            tuned(settings, sources, Recipe("lora", **QUICK), "first")
    with pytest.raises(TandemError, match="unfinished run"):
        tuned(settings, sources, Recipe("lora", **QUICK), "first")
    with pytest.raises(TandemError, match="other settings: r"):
        run_tune(settings, Request(Recipe("lora", **{**QUICK, "r": 8}), name="first", resume=True), as_json=True)
    write_rows(tmp_path / "others.jsonl", make_rows(9))
    with pytest.raises(TandemError, match="not started with"):
        asked = Request(None, RowSources(rows=(tmp_path / "others.jsonl",)), name="first", resume=True)
        run_tune(settings, asked, as_json=True)
    other = save_small_model(tmp_path / "other", seed=9, window=2048)
    (settings.home / "tuning" / "first" / "recipe.json").write_text(
        (settings.home / "tuning" / "first" / "recipe.json").read_text().replace(settings.base_model, str(other))
    )
    with pytest.raises(TandemError, match="another base model"):
        run_tune(settings, Request(None, name="first", resume=True), as_json=True)
    assert tuned(settings, sources, Recipe("lora", **QUICK), "first", force=True)["name"] == "first"


def test_a_name_is_made_where_none_is_given(settings: Settings, sources: RowSources) -> None:
    for expected in ("tuned-1", "tuned-2"):
        body = run_tune(settings, Request(Recipe("lora", **{**QUICK, "epochs": 0.5}), sources), as_json=True)
        assert body["name"] == expected


def test_rows_of_instructions_alone_hold_nothing_out(settings: Settings, tmp_path: Path) -> None:
    write_rows(tmp_path / "tasks.jsonl", [Row("instruction", f"Say {n}", (), str(n), ()) for n in range(10)])
    recipe = Recipe("lora", **{**QUICK, "validation_share": 0, "epochs": 0.5})
    body = tuned(settings, RowSources(rows=(tmp_path / "tasks.jsonl",)), recipe, "tasks")
    assert body["counts"]["instruction"] == 10 and "validation_loss_after" not in body["metrics"]
