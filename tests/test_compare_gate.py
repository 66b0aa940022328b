"""What a verdict does: an adapter that lost is not activated, and `auto` serves what won."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import save_fake_adapter
from small_models import save_adapter, save_small_model

from indexer.errors import TandemError
from service import activation
from service.auto import auto_mode
from service.compare.history import (
    StoredVerdict,
    comparisons_folder,
    last_verdict,
    last_verdict_on,
    new_comparison,
    save_verdict,
)
from service.question import Question, resolve_mode
from service.settings import Settings
from tuner.active import activate, active_adapter, was_forced
from tuner.adapters import AdapterCard, read_card
from tuner.basemodel import BaseModel, load_base_model


def remember(home: Path, **values: Any) -> Path:
    folder = new_comparison(home)
    known: dict[str, Any] = {
        "created": "2026-01-01",
        "folder": folder.name,
        "base_model": "bundled",
        "serve": "rag",
        "adapter": None,
        "decided": True,
        "adapters": {},
    }
    save_verdict(folder, StoredVerdict(**{**known, **values}))
    return folder


def about(card: AdapterCard, outcome: str) -> dict[str, Any]:
    return {
        card.name: {
            "weights_sha256": card.weights_sha256,
            "activate": outcome == "better",
            "outcome": outcome,
            "reasons": [f"It is {outcome}."],
        }
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("model") / "small")
    return load_base_model(str(folder), cache=folder.parent, device="cpu")


@pytest.fixture
def card(settings: Settings, base: BaseModel) -> AdapterCard:
    return read_card(save_adapter(settings.home / "adapters" / "mine", base, seed=1))


def test_an_adapter_without_a_comparison_is_activated(settings: Settings, card: AdapterCard, base: BaseModel) -> None:
    assert activation.activate_checked(settings, "mine", base) == card
    assert active_adapter(settings.home) == "mine" and not was_forced(settings.home)


@pytest.mark.parametrize("outcome", ["worse", "no better", "unproven"])
def test_one_that_did_not_win_is_refused(settings: Settings, card: AdapterCard, base: BaseModel, outcome: str) -> None:
    folder = remember(settings.home, adapters=about(card, outcome))
    with pytest.raises(TandemError) as error:
        activation.activate_checked(settings, "mine", base)
    assert error.value.code == "conflict" and "--force" in error.value.do
    assert f"It is {outcome}." in error.value.happened and folder.name in error.value.happened
    assert active_adapter(settings.home, "another model") is None


def test_force_overrides_and_is_recorded(settings: Settings, card: AdapterCard, base: BaseModel) -> None:
    remember(settings.home, adapters=about(card, "worse"))
    activation.activate_checked(settings, "mine", base, force=True)
    kept = json.loads((settings.home / "adapters" / "active.json").read_text())
    assert kept["name"] == "mine" and "It is worse." in kept["forced_against"]
    assert was_forced(settings.home)


def test_the_newest_comparison_counts_and_only_for_these_weights(
    settings: Settings, card: AdapterCard, base: BaseModel
) -> None:
    remember(settings.home, adapters=about(card, "worse"))
    remember(settings.home, adapters=about(card, "better"))
    remember(settings.home, adapters=about(replace(card, weights_sha256="other"), "worse"))
    activation.activate_checked(settings, "mine", base)
    found = last_verdict_on(settings.home, card.weights_sha256)
    assert found is not None and found[1]["outcome"] == "better"


def test_a_damaged_verdict_is_passed_over(settings: Settings, card: AdapterCard) -> None:
    remember(settings.home, serve="base")
    for number, text in enumerate(('{"created": 1}', "{", "[]")):
        folder = comparisons_folder(settings.home) / f"9{number}"
        folder.mkdir()
        (folder / "verdict.json").write_text(text)
    known = last_verdict(settings.home)
    assert known is not None and known.serve == "base"


def test_auto_without_a_comparison(settings: Settings) -> None:
    assert auto_mode(settings, None, from_documents=False) == "rag"
    assert auto_mode(settings, "mine", from_documents=False) == "rag+tuned"


@pytest.mark.parametrize(
    ("serve", "outcome", "expected"),
    [
        ("rag", "worse", "rag"),
        ("rag", "no better", "rag"),
        ("rag+tuned", "better", "rag+tuned"),
        ("base", "worse", "base"),
    ],
)
def test_auto_serves_the_winner(settings: Settings, serve: str, outcome: str, expected: str) -> None:
    card = save_fake_adapter(settings.home, "mine")
    activate(settings.home, "mine")
    adapter = "mine" if serve == "rag+tuned" else None
    remember(settings.home, serve=serve, adapter=adapter, adapters=about(card, outcome))
    mode, used = resolve_mode(Question("How hot?"), settings, "mine")
    assert (mode, used) == (expected, "mine" if "tuned" in expected else None)


def test_a_closed_book_winner_does_not_answer_from_documents(settings: Settings) -> None:
    remember(settings.home, serve="base")
    assert auto_mode(settings, None, from_documents=False) == "base"
    assert auto_mode(settings, None, from_documents=True) == "rag"


@pytest.mark.parametrize(
    "values",
    [
        {"base_model": "another"},
        {"decided": False},
        {"serve": None},
        {"adapters": {}},
        {"outcome": "unproven"},
        {"weights_sha256": "other"},
        {"adapter": "other"},
    ],
)
def test_auto_ignores_a_verdict_about_something_else(settings: Settings, values: dict[str, Any]) -> None:
    card = save_fake_adapter(settings.home, "mine")
    judged = about(card, values.pop("outcome", "worse"))
    judged["mine"]["weights_sha256"] = values.pop("weights_sha256", card.weights_sha256)
    remember(settings.home, **{"adapters": judged, **values})
    assert auto_mode(settings, "mine", from_documents=False) == "rag+tuned"


def test_auto_respects_a_forced_adapter_and_one_that_is_named(settings: Settings) -> None:
    card = save_fake_adapter(settings.home, "mine")
    remember(settings.home, adapters=about(card, "worse"))
    activate(settings.home, "mine", against="It is worse.")
    assert resolve_mode(Question("How hot?"), settings, "mine") == ("rag+tuned", "mine")
    activate(settings.home, "mine")
    assert resolve_mode(Question("How hot?"), settings, "mine") == ("rag", None)
    assert resolve_mode(Question("How hot?", adapter="mine"), settings, "mine") == ("rag+tuned", "mine")
