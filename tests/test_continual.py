"""Tuning goes on from an adapter: it starts where that one ended, replay keeps what it knew, its card forgets none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import item
from small_models import save_small_model
from tuning_rows import BREAD, IRON, TIDES
from typer.testing import CliRunner

from service.cli import app
from service.commands.rows import RowSources
from service.commands.tune import Request, run_tune
from service.compare.leakage import exposures
from service.settings import Settings
from tuner import forgetting
from tuner.adapters import AdapterCard, read_card, save_card
from tuner.basemodel import load_base_model
from tuner.grouploss import Reading
from tuner.groups import encode_rows
from tuner.objective import Supervised
from tuner.prompt import Source
from tuner.recipe import Recipe
from tuner.rowfile import read_rows, write_rows
from tuner.rows import Row
from tuner.train import Training, evaluate
from tuner.trainable import make_trainable

QUICK: dict[str, Any] = {"validation_share": 0, "precision": "float32", "accumulation": 1, "epochs": 6}
WHALES = Source("Whales", "Whales sing under the ice.")
OLD = [
    Row("evidence", f"What raises the tides {n}?", (TIDES, IRON), "The moon [1].", ("tides", "iron")) for n in range(8)
]
NEW = [
    Row("evidence", f"Who sings {n}?", (BREAD, WHALES), "Zebras do quietly [2].", ("whales", "bread")) for n in range(8)
]


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "QUESTIONS", forgetting.QUESTIONS[:1])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home folder in which `first` was tuned on the old rows."""
    folder = tmp_path_factory.mktemp("continual")
    base = save_small_model(folder / "base", window=2048)
    made = Settings(home=folder / "home", weights=folder / "weights", base_model=str(base), threads=1)
    write_rows(folder / "rows.jsonl", OLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "QUESTIONS", forgetting.QUESTIONS[:1])
        recipe = Recipe("lora", r=4, learning_rate=5e-3, **QUICK)
        run_tune(made, Request(recipe, RowSources(rows=(folder / "rows.jsonl",)), name="first"), as_json=True)
    return made


def tuned(settings: Settings, rows: Path, name: str, replay: tuple[Path, ...] = (), rate: float = 1e-2) -> AdapterCard:
    recipe = Recipe("lora", start_from="first", learning_rate=rate, **QUICK)
    run_tune(settings, Request(recipe, RowSources(rows=(rows,), replay=replay), name=name), as_json=True)
    return read_card(settings.home / "adapters" / name)


def loss(settings: Settings, name: str, rows: list[Row]) -> float:
    """Nats a learned token of these rows, with the adapter of that name."""
    base = load_base_model(settings.base_model, cache=settings.weights_folder, device="cpu")
    recipe = Recipe("lora", start_from=name, **QUICK)
    trainable = make_trainable(base, recipe, settings.home / "adapters" / name)
    groups = encode_rows(base.tokenizer, rows, limit=1900).groups
    objective = Supervised(trainable.model, Reading())
    training = Training(trainable.model, trainable.parameters, objective, groups, groups, recipe.schedule)
    return evaluate(training, groups)


def test_it_starts_where_the_adapter_ended(settings: Settings, tmp_path: Path) -> None:
    write_rows(tmp_path / "new.jsonl", NEW)
    tuned(settings, tmp_path / "new.jsonl", "still", rate=1e-8)
    assert loss(settings, "still", OLD) == pytest.approx(loss(settings, "first", OLD), rel=1e-3)


def test_replayed_rows_keep_what_the_adapter_knew(settings: Settings, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", NEW)
    kept = settings.home / "tuning" / "first" / "rows.jsonl"
    assert read_rows(kept) == OLD
    forgetful = tuned(settings, tmp_path / "rows.jsonl", "forgetful")
    mindful = tuned(settings, tmp_path / "rows.jsonl", "mindful", (kept,))
    assert (forgetful.recipe["counts"]["rows"], mindful.recipe["counts"]["rows"]) == (8, 16)
    # Two files of one name are both in the card.
    assert len(mindful.recipe["sources"]) == 2
    before, without, with_replay = (loss(settings, name, OLD) for name in ("first", "forgetful", "mindful"))
    assert without > before + 0.1
    assert with_replay < without - 0.1
    assert loss(settings, "mindful", NEW) < loss(settings, "first", NEW) - 0.1


def test_the_card_tells_what_the_first_adapter_has_seen(settings: Settings, tmp_path: Path) -> None:
    folder = settings.home / "adapters" / "first"
    read = {"id": "1", "path": "tides.md", "hash": "0"}
    save_card(folder, replace(read_card(folder), documents=(read,)))
    write_rows(tmp_path / "new.jsonl", NEW)
    card = tuned(settings, tmp_path / "new.jsonl", "second", rate=1e-8)
    asked = [item(row.question, "x") for row in (OLD[3], NEW[3])]
    for each in asked:
        assert exposures([each], card, {}) == {"1": "seen_question"}
    assert exposures([item("Who asks this?", "x")], card, {}) == {"1": "clean"}
    assert list(card.documents) == [read]
    assert (card.recipe["r"], card.recipe["start_from"]) == (4, "first")


def test_replay_beside_preferences_is_refused(settings: Settings, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TANDEM_HOME", str(settings.home))
    given = tmp_path / "preferences.jsonl"
    given.write_text('{"question": "Q?", "passages": [], "chosen": "a", "rejected": "b"}\n')
    words = ["tune", "--recipe", "dpo", "--start-from", "first", "--rows", str(given), "--replay", str(given)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "--replay means nothing to preferences" in result.stderr
