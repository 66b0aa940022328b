"""From the answers to the gate: the comparison of a bad, a leaked and a good adapter decides which may go live."""

from pathlib import Path
from typing import Any

import pytest
from compared import RIGHT, ArmGenerator, many_pairs, write_pairs
from conftest import MakeService
from fakes import FixedAdapters
from small_models import save_adapter, save_small_model

from indexer.errors import TandemError
from service.activation import activate_checked
from service.compare.body import make_body, stored
from service.compare.history import save_verdict
from service.compare.run import Options, ask, collect, place_of, prepare
from tuner.active import active_adapter
from tuner.adapters import DEFAULT_ADAPTER
from tuner.basemodel import BaseModel, load_base_model
from tuner.questionhash import question_hash

PAIRS = many_pairs(12)
# Each question gets the answer of the next one, as if the answers of its training had been shuffled.
SHUFFLED = dict(zip(RIGHT, [*list(RIGHT.values())[1:], next(iter(RIGHT.values()))], strict=True))
SOME = dict(list(RIGHT.items())[:1])
SEEN = {"questions_sha256": sorted({question_hash(pair["question"]) for pair in PAIRS})}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("model") / "small")
    return load_base_model(str(folder), cache=folder.parent, device="cpu")


@pytest.mark.parametrize(
    ("script", "recipe", "outcome"),
    [(SHUFFLED, {}, "no better|worse"), (RIGHT, SEEN, "unproven"), (RIGHT, {}, "better")],
    ids=["shuffled", "seen", "good"],
)
def test_the_comparison_decides_whether_it_goes_live(
    make_service: MakeService, base: BaseModel, tmp_path: Path, script: dict[str, str], recipe: Any, outcome: str
) -> None:
    service = make_service(ArmGenerator({None: SOME, "mine": script}), FixedAdapters(["mine"], None))
    home = service.settings.home
    save_adapter(home / "adapters" / "mine", base, seed=1, recipe={"name": "lora", **recipe})
    prepared = prepare(
        service.settings, service.store, Options(write_pairs(tmp_path / "pairs.jsonl", PAIRS), adapters=("mine",))
    )
    folder = place_of(prepared)
    ask(prepared, folder, service.answerer, None, lambda progress: None)
    body, verdict = make_body(prepared, collect(prepared, folder), folder, {}, {})
    save_verdict(folder, stored(prepared, verdict, body, folder))
    assert verdict.adapters["mine"].outcome in outcome.split("|")
    if outcome == "better":
        activate_checked(service.settings, "mine", base)
        assert active_adapter(home) == "mine"
        return
    with pytest.raises(TandemError, match="speaks against the adapter 'mine'") as error:
        activate_checked(service.settings, "mine", base)
    assert error.value.code == "conflict" and active_adapter(home) == DEFAULT_ADAPTER
