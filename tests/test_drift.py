"""A drop between two comparisons of the same pairs is named by `tandem doctor`; chance and other files are not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import RIGHT, ArmGenerator, many_pairs, write_pairs
from conftest import MakeService
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.sync import forget, sync
from service.commands import compare as command
from service.commands.drifting import check_drift
from service.compare.drift import SCORES_FILE, find_drift
from service.compare.history import PLAN_FILE, REPORT_FILE, comparisons_folder
from service.compare.run import Options

PLAN: dict[str, Any] = {
    "pairs_sha256": "a" * 64,
    "generation": 3,
    "adapters": {"support": "1" * 64},
    "settings": {"k": 4, "min_relevance": 0.25},
    "versions": {"torch": "2"},
}


def keep(home: Path, name: str, scores: Mapping[str, Sequence[float]], finished: bool = True, **plan: Any) -> Path:
    """A comparison of that name in which the arms scored so, question by question."""
    folder = comparisons_folder(home) / name
    folder.mkdir(parents=True)
    (folder / PLAN_FILE).write_text(json.dumps({**PLAN, **plan}))
    arms = {arm: {f"q{number}": value for number, value in enumerate(values)} for arm, values in scores.items()}
    (folder / SCORES_FILE).write_text(json.dumps({"measure": "truthfulness", "file": "people.jsonl", "arms": arms}))
    if finished:
        (folder / REPORT_FILE).write_text("{}")
    return folder


def test_a_drop_is_named_with_what_changed_and_what_to_do(tmp_path: Path) -> None:
    then = [1.0] * 40
    now = [1.0] * 28 + [-1.0] * 12
    keep(tmp_path, "20260101T000000Z", {"rag": then, "base": then})
    folder = keep(tmp_path, "20260201T000000Z", {"rag": now, "base": then}, generation=4, settings={"k": 2})
    (drift,) = find_drift(tmp_path)
    (drop,) = drift.drops
    assert (drop.arm, drop.n) == ("rag", 40)
    assert drop.difference == pytest.approx(-24 / 40)
    # The interval of a mean of n values that are 0 or -2, by the normal approximation.
    spread = 1.96 * np.std([0.0] * 28 + [-2.0] * 12) / np.sqrt(40)
    assert drop.low == pytest.approx(-0.6 - spread, abs=0.06) and drop.high == pytest.approx(-0.6 + spread, abs=0.06)
    assert drift.causes == {"generation": (3, 4), "k": (4, 2)}
    (finding,) = check_drift(tmp_path)
    assert not finding.ok and "rag fell by 0.600" in finding.found and "base" not in finding.found
    assert "people.jsonl: 20260201T000000Z against 20260101T000000Z" in finding.found
    assert "Changed in between: generation, k." in finding.found
    assert str(folder / "report.md") in finding.do and "k (4 before)" in finding.do
    assert "tandem index --dry-run" in finding.do and finding.do.endswith("then compare people.jsonl again.")


def test_what_is_within_chance_is_no_drop(tmp_path: Path) -> None:
    keep(tmp_path, "1", {"rag": [1.0] * 40})
    keep(tmp_path, "2", {"rag": [1.0] * 38 + [-1.0] * 2})
    (finding,) = check_drift(tmp_path)
    assert finding.ok and "no drop in rag" in finding.found
    # A gain is none either.
    keep(tmp_path, "3", {"rag": [1.0] * 40})
    keep(tmp_path, "0", {"rag": [-1.0] * 40})
    assert all(finding.ok for finding in check_drift(tmp_path))


def test_random_answers_of_equal_worth_are_hardly_ever_called_a_drop(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    called = 0
    for number in range(40):
        home = tmp_path / str(number)
        for name in ("1", "2"):
            keep(home, name, {"rag": list(random.choice([-1.0, 0.0, 1.0], 40))})
        called += len(find_drift(home)[0].drops)
    assert called <= 4


def test_only_finished_comparisons_of_the_same_pairs_count(tmp_path: Path) -> None:
    good, bad = [1.0] * 40, [-1.0] * 40
    keep(tmp_path, "1", {"rag": good})
    keep(tmp_path, "2", {"rag": bad}, finished=False)
    keep(tmp_path, "3", {"rag": bad}, pairs_sha256="b")
    keep(tmp_path, "4", {"rag": [-1.0] * 5})
    damaged = keep(tmp_path, "5", {"rag": bad})
    (damaged / SCORES_FILE).write_text('{"arms": [1], "file": "x"}')
    assert find_drift(tmp_path) == [] and list(check_drift(tmp_path / "none")) == []
    keep(tmp_path, "6", {"rag": good})
    keep(tmp_path, "7", {"rag": bad}, pairs_sha256="b")
    first, second = find_drift(tmp_path)
    assert [(first.then.name, first.now.name), (second.then.name, second.now.name)] == [("3", "7"), ("1", "6")]
    # The last two, not the first and the last.
    keep(tmp_path, "8", {"rag": bad})
    keep(tmp_path, "9", {"rag": bad})
    assert not any(drift.drops for drift in find_drift(tmp_path))


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ({"support": "2" * 64}, "support was tuned again"),
        ({"other": "2" * 64}, "tandem adapters activate support"),
    ],
)
def test_the_adapter_before_is_named(tmp_path: Path, adapters: dict[str, str], told: str) -> None:
    keep(tmp_path, "1", {"rag+tuned": [1.0] * 40})
    keep(tmp_path, "2", {"rag+tuned": [0.0] * 40}, adapters=adapters)
    (finding,) = check_drift(tmp_path)
    assert told in finding.do


def test_documents_that_were_deleted_show_in_the_next_comparison(
    make_service: MakeService, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "people.jsonl", many_pairs(12))
    service = make_service(ArmGenerator({None: RIGHT}), min_relevance=0)
    monkeypatch.setattr(command, "load_answerer", lambda *arguments: service.answerer)
    monkeypatch.setattr(command, "warm_up", lambda *arguments: None)
    monkeypatch.setattr(command, "changed_fact", lambda *arguments: {})

    def compare() -> None:
        command.run_compare(service.settings, Options(pairs, modes=("rag",)), command.Extras(), as_json=True)

    compare()
    compare()
    assert [finding.ok for finding in check_drift(service.settings.home)] == [True]
    forget(service.store, library / "corpus")
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "whales.txt").write_text("Whales sing.")
    sync(service.store, [tmp_path / "left"], HashingEmbedder(), ChunkSize(40, 8))
    compare()
    (finding,) = check_drift(service.settings.home)
    assert not finding.ok and "Changed in between: generation." in finding.found
    # Of five questions three were answered: each is refused now.
    assert "rag fell by 0.600" in finding.found
