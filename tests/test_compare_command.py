"""`tandem compare` as a person runs it: real weights, the manual's own style of pairs, its files and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compared import PAIRS, write_pairs
from conftest import write_library
from small_models import save_adapter

from service.compare.arms import ALWAYS_REFUSE, BEST_SENTENCE
from tuner.basemodel import BaseModel

Run = subprocess.CompletedProcess[str]


def tandem(folder: Path, weights: Path, *arguments: str) -> Run:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")} | {
        "TANDEM_HOME": str(folder / "home"),
        "TANDEM_WEIGHTS": str(weights.resolve()),
        "TANDEM_CORPORA": str(folder / "corpus"),
        "TANDEM_MAX_TOKENS": "24",
    }
    command = [str(Path(sys.executable).with_name("tandem")), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_comparison_from_the_command_line(weights_cache: Path, base_model: BaseModel, tmp_path: Path) -> None:
    write_library(tmp_path / "corpus")
    pairs = str(write_pairs(tmp_path / "pairs.jsonl", PAIRS))
    assert tandem(tmp_path, weights_cache, "index").returncode == 0
    # Random matrices: an adapter that makes the model babble.
    read = ({"id": "0", "path": "tides.md", "hash": "0"}, {"id": "1", "path": "gone.md", "hash": "0"})
    save_adapter(tmp_path / "home" / "adapters" / "babble", base_model, seed=1, documents=read)
    given = ("compare", "--pairs", pairs, "--adapter", "babble")
    made = tandem(tmp_path, weights_cache, *given, "--limit", "3", "--out", str(tmp_path / "out"), "--json")
    assert made.returncode == 0, made.stderr
    body: dict[str, Any] = json.loads(made.stdout)
    assert set(body["arms"]) == {"base", "tuned", "rag", "rag+tuned", BEST_SENTENCE, ALWAYS_REFUSE}
    assert body["questions"]["asked"] == 3
    for name in ("base", "rag"):
        arm = body["arms"][name]
        assert -1 <= arm["truthfulness"]["value"] <= 1 and arm["truthfulness"]["n"] == 3
        assert arm["prompt_tokens"] > 0 and arm["latency_ms"]["p95"] >= arm["latency_ms"]["p50"] > 0
    assert body["arms"]["rag"]["prompt_tokens"] > body["arms"]["base"]["prompt_tokens"]
    assert body["verdict"]["serve"] == "rag" and not body["verdict"]["activate_adapter"]
    assert body["again"]["base"]["quantisation"] and body["costs"]["changed_fact"]["seconds"]["re-index"] > 0
    copied = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.md", "report.json", "answers.jsonl", "verdict.json", "quality.png"} <= copied

    refused = tandem(tmp_path, weights_cache, "adapters", "activate", "babble")
    assert refused.returncode == 2
    assert "speaks against" in refused.stderr and "--force" in refused.stderr
    forced = tandem(tmp_path, weights_cache, "adapters", "activate", "babble", "--force")
    assert forced.returncode == 0 and "against the last comparison" in forced.stderr

    (tmp_path / "corpus" / "tides.md").write_text("# Tides\n\nThe moon raises the tides.\n")
    again = tandem(tmp_path, weights_cache, "index")
    assert "The adapter babble was trained on 2 documents since changed or deleted: tides.md, gone.md." in again.stderr
    fresh = tandem(tmp_path, weights_cache, *given[:3], "--modes", "rag", "--freshness", "--limit", "2", "--json")
    assert fresh.returncode == 0, fresh.stderr
    counts = json.loads(fresh.stdout)
    assert sum(counts["changed"]["rag"].values()) == len(counts["facts"]) > 0
    assert counts["deleted"]["rag"]["told"] == 0


def test_mistakes_are_told_before_any_model_is_loaded(weights_cache: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    missing = tandem(tmp_path, weights_cache, "compare", "--pairs", str(pairs))
    assert missing.returncode == 2 and "Nothing is indexed yet" in missing.stderr
    both = tandem(tmp_path, weights_cache, "compare", "--pairs", "p", "--schema", "s", "--pattern", "x")
    assert both.returncode == 2 and "do not go together" in both.stderr
    other = tandem(tmp_path, weights_cache, "compare", "--pairs", "p", "--freshness", "--quick", "--json")
    assert other.returncode == 2 and json.loads(other.stdout)["error"]["code"] == "invalid_request"
    gone = tandem(tmp_path, weights_cache, "compare", "--pairs", str(tmp_path / "none.jsonl"))
    assert gone.returncode == 2 and "cannot be read" in gone.stderr
