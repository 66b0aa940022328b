"""Whole comparisons over the small library, with scripted models: everything but the weights is real."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from compared import PAIRS, RIGHT, ArmGenerator, item, many_pairs, save_fake_adapter, write_pairs
from conftest import MakeService
from fakes import FixedAdapters, HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.sync import sync
from service.compare.arms import ALWAYS_REFUSE, BEST_SENTENCE
from service.compare.body import make_body, stored
from service.compare.costs import arm_costs, changed_fact
from service.compare.figures import draw_figures
from service.compare.formats import pattern_check, schema_check
from service.compare.freshness import freshness
from service.compare.history import REPORT_FILE, last_verdict, save_verdict
from service.compare.markdown import markdown
from service.compare.questions import read_items, sample
from service.compare.records import ANSWERS_FILE, append_records, read_records
from service.compare.run import Options, Prepared, ask, collect, place_of, prepare
from service.running import Service
from tuner.questionhash import question_hash

WRONG = {question: "The moon raises the tides of the ocean twice a day [1]." for question in RIGHT}
GOOD: dict[str | None, dict[str, str]] = {None: WRONG, "good": RIGHT}


def silent(progress: object) -> None:
    pass


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(ArmGenerator(GOOD), FixedAdapters(["good", "other"], "good"))


def options(tmp_path: Path, pairs: list[dict[str, Any]] = PAIRS, **more: Any) -> Options:
    return Options(write_pairs(tmp_path / "pairs.jsonl", pairs), adapters=more.pop("adapters", ("good",)), **more)


def compared(service: Service, chosen: Options) -> tuple[Prepared, Path]:
    prepared = prepare(service.settings, service.store, chosen)
    folder = place_of(prepared)
    assert service.answerer is not None
    ask(prepared, folder, service.answerer, None, silent)
    return prepared, folder


def report(service: Service, prepared: Prepared, folder: Path) -> dict[str, Any]:
    answered = collect(prepared, folder)
    body, verdict = make_body(prepared, answered, folder, {}, {})
    save_verdict(folder, stored(prepared, verdict, body, folder))
    return json.loads(json.dumps(body))  # type: ignore[no-any-return]


def test_a_whole_comparison(service: Service, tmp_path: Path) -> None:
    save_fake_adapter(service.settings.home, "good", metrics={"seconds": 80.0, "whole_seconds": 90.0})
    prepared, folder = compared(service, options(tmp_path, many_pairs(12)))
    body = report(service, prepared, folder)
    assert list(body["arms"]) == ["base", "tuned", "rag", "rag+tuned", BEST_SENTENCE, ALWAYS_REFUSE]
    tuned, rag, never = (body["arms"][name] for name in ("rag+tuned", "rag", ALWAYS_REFUSE))
    assert tuned["correct"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 36}
    assert rag["correct"]["value"] == pytest.approx(1 / 3, abs=1e-5), "the wrong answer is right for one question"
    assert tuned["refusal_absent"]["value"] == 1.0 and tuned["refusal_absent"]["n"] == 12
    assert never["over_refusal"]["value"] == 1.0 and never["truthfulness"]["value"] == pytest.approx(0.4)
    assert tuned["adapter"] == "good" and rag["adapter"] is None
    assert tuned["prompt_tokens"] == rag["prompt_tokens"] > body["arms"]["base"]["prompt_tokens"]
    assert tuned["latency_ms"]["p50"] <= tuned["latency_ms"]["p95"]
    assert tuned["peak_memory_bytes"] > 1 << 20
    assert tuned["by_kind"]["answerable"]["truthfulness"]["value"] == 1.0
    # A right refusal counts over all questions only.
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 36}
    assert never["by_kind"]["answerable"]["exact_match"] == never["by_kind"]["answerable"]["f1"] == nothing
    assert never["exact_match"]["value"] == never["f1"]["value"] == pytest.approx(0.4)
    found = tuned["by_kind"]["answerable"]["f1"]
    told = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    (row,) = [line for line in markdown(body, ()).splitlines() if line.startswith("| answerable | f1 | 36 |")]
    assert 0 < found["low"] < found["value"] < found["high"] < 1 and told in row
    assert body["questions"]["by_kind"] == {"answerable": 36, "absent": 12, "misleading": 12}
    assert body["questions"]["by_exposure"] == {"clean": 60}
    verdict = body["verdict"]
    assert (verdict["serve"], verdict["activate_adapter"], verdict["adapter"]) == ("rag+tuned", True, "good")
    assert {test["measure"] for test in body["tests"]} == {"truthfulness", "f1"} and len(body["tests"]) == 30
    assert body["again"]["pairs_sha256"] and body["again"]["adapters"]["good"]
    known = last_verdict(service.settings.home)
    assert known is not None and known.decided and known.adapters["good"]["activate"]


def test_the_report_can_be_read_and_seen(service: Service, tmp_path: Path) -> None:
    save_fake_adapter(service.settings.home, "good", metrics={"seconds": 80.0, "whole_seconds": 90.0})
    prepared, folder = compared(service, options(tmp_path))
    assert service.answerer is not None
    costs = arm_costs(prepared, service.store, service.answerer)
    assert costs["adapters"]["good"] == {"bytes": 4, "training_seconds": 90.0}
    changed = changed_fact(prepared, service.store, service.answerer, silent)
    assert changed["seconds"]["re-index"] > 0 and changed["seconds"]["re-tune good"] == 90.0
    body, _ = make_body(prepared, collect(prepared, folder), folder, {**costs, "changed_fact": changed}, {})
    figures = draw_figures(body, folder)
    assert [name for name, _ in figures] == ["quality.png", "latency.png", "tokens.png", "refusals.png", "change.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name, _ in figures)
    page = markdown(body, figures)
    assert page.index("## Verdict") < page.index("## Quality") < page.index("## To run it again")
    assert "### What makes bread rise?" in page, "the adapter answers it, the base model does not"
    assert "> [1] bread.md: " in page
    assert all(f"({name})" in page for name, _ in figures)
    curve = body["refusal_curve"]["rag"]
    assert curve[0]["min_relevance"] == service.settings.min_relevance
    assert (curve[-1]["refusal"], curve[-1]["over_refusal"]) == (1.0, 1.0)
    assert [point["refusal"] for point in curve] == sorted(point["refusal"] for point in curve)


def test_arms_that_retrieve_see_the_same(service: Service, tmp_path: Path) -> None:
    save_fake_adapter(service.settings.home, "good")
    prepared, folder = compared(service, options(tmp_path))
    for records in collect(prepared, folder).records.values():
        assert [record.pair for record in records] == [item.pair.id for item in prepared.items]
    shown = {
        name: [record.passages for record in collect(prepared, folder).records[name]]
        for name in ("rag", "rag+tuned", BEST_SENTENCE)
    }
    assert shown["rag"] == shown["rag+tuned"] == shown[BEST_SENTENCE]
    assert any(shown["rag"])


def test_the_best_sentence_baseline_quotes_what_it_read(service: Service, tmp_path: Path) -> None:
    prepared, folder = compared(service, options(tmp_path, adapters=()))
    by_pair = {record.pair: record for record in collect(prepared, folder).records[BEST_SENTENCE]}
    assert by_pair["i"].answer == "Iron melts at 1538 degrees Celsius. [1]"
    (cited,) = by_pair["i"].citations
    assert cited.quote == "Iron melts at 1538 degrees Celsius."
    assert by_pair["a"].refused


def test_an_adapter_that_saw_the_test_is_caught(service: Service, tmp_path: Path) -> None:
    pairs = many_pairs(12)
    hashes = [question_hash(pair["question"]) for pair in pairs]
    assert len(set(hashes)) == len(PAIRS), "white space does not make another question"
    save_fake_adapter(service.settings.home, "good", recipe={"questions_sha256": hashes})
    prepared, folder = compared(service, options(tmp_path, pairs))
    body = report(service, prepared, folder)
    assert body["questions"]["by_exposure"] == {"seen_question": 60}
    assert not body["verdict"]["activate_adapter"]
    assert body["verdict"]["adapters"]["good"]["outcome"] == "unproven"
    assert "60 questions were trained on and count for nothing." in body["verdict"]["reasons"]


def test_weaker_classes_are_told_apart(service: Service, tmp_path: Path) -> None:
    pairs = [
        {**pair, "written_by": "teacher" if pair["id"].startswith("b") else "me", "tag": "domain"}
        for pair in many_pairs(8)
    ]
    save_fake_adapter(
        service.settings.home,
        "good",
        documents=({"id": "x", "path": "tides.md", "hash": "y"},),
        recipe={"written_by": ["teacher"]},
    )
    prepared, folder = compared(service, options(tmp_path, pairs))
    body = report(service, prepared, folder)
    assert body["questions"]["by_exposure"] == {"seen_document": 16, "same_writer": 8, "clean": 16}
    assert body["questions"]["by_tag"] == {"domain": 40}
    assert body["arms"]["rag+tuned"]["by_kind"]["domain"]["truthfulness"]["n"] == 40
    assert body["arms"]["rag+tuned"]["by_exposure"]["same_writer"]["truthfulness"]["n"] == 8
    assert body["verdict"]["evidence"] == {"questions": 40, "class": "unseen questions"}
    assert body["verdict"]["adapters"]["good"]["outcome"] == "unproven"


def test_it_goes_on_where_it_was_cut_off(service: Service, tmp_path: Path) -> None:
    home = service.settings.home
    save_fake_adapter(home, "good")
    chosen = options(tmp_path)
    prepared, folder = compared(service, chosen)
    whole = (folder / ANSWERS_FILE).read_text().splitlines(keepends=True)
    # Two questions and a half, the last line cut off as a kill leaves it.
    (folder / ANSWERS_FILE).write_text("".join(whole[:10]) + whole[10][:40])
    generator = service.answerer.generator  # type: ignore[union-attr]
    before = len(generator.prompts)  # type: ignore[attr-defined]
    again = prepare(service.settings, service.store, Options(chosen.pairs, adapters=("good",), resume=True))
    assert place_of(again) == folder
    assert service.answerer is not None
    ask(again, folder, service.answerer, None, silent)
    assert len(collect(again, folder).items) == len(PAIRS)
    assert len(collect(again, folder).arms) == 6, "no arm is missing an answer"
    asked = len(generator.prompts) - before  # type: ignore[attr-defined]
    assert 0 < asked <= 4 * 3, "what was kept is not asked again"
    # With a report it is finished, and there is nothing to go on with.
    (folder / REPORT_FILE).write_text("{}")
    with pytest.raises(TandemError, match="no unfinished comparison"):
        place_of(again)


def test_another_plan_is_not_gone_on_with(service: Service, tmp_path: Path) -> None:
    save_fake_adapter(service.settings.home, "good")
    compared(service, options(tmp_path))
    other = prepare(service.settings, service.store, options(tmp_path, adapters=(), resume=True))
    with pytest.raises(TandemError, match="another adapters, arms"):
        place_of(other)


def test_an_adapter_that_vanishes_leaves_what_was_answered(service: Service, tmp_path: Path) -> None:
    save_fake_adapter(service.settings.home, "good")
    prepared = prepare(service.settings, service.store, options(tmp_path))
    folder = place_of(prepared)
    answerer = service.answerer
    assert answerer is not None and isinstance(answerer.adapters, FixedAdapters)
    adapters, seen = answerer.adapters, []

    def vanish(progress: Any) -> None:
        seen.append(progress)
        if progress.done == 2:
            adapters.names = ()

    with pytest.raises(TandemError) as error:
        ask(prepared, folder, answerer, None, vanish)
    assert "stopped after 2 of 5 questions" in error.value.happened and "'good'" in error.value.happened
    assert str(folder) in error.value.do and "--resume" in error.value.do
    assert len(collect(prepared, folder).items) == 2, "the finished part can be reported"


def test_an_index_that_changes_meanwhile_ends_it(service: Service, library: Path, tmp_path: Path) -> None:
    save_fake_adapter(service.settings.home, "good")
    prepared = prepare(service.settings, service.store, options(tmp_path))
    other = tmp_path / "more"
    other.mkdir()
    (other / "new.txt").write_text("Whales sing.")
    sync(service.store, [other], HashingEmbedder(), ChunkSize(40, 8))
    assert service.answerer is not None
    with pytest.raises(TandemError, match="index changed during the comparison"):
        ask(prepared, place_of(prepared), service.answerer, None, silent)


def test_an_index_of_another_embedder_is_refused(make_service: MakeService, tmp_path: Path) -> None:
    service = make_service(ArmGenerator(GOOD))
    assert service.answerer is not None
    service.answerer.retriever.embedder.identity = "another:256"  # type: ignore[misc]
    prepared = prepare(service.settings, service.store, options(tmp_path, adapters=()))
    with pytest.raises(TandemError, match="embed"):
        ask(prepared, place_of(prepared), service.answerer, None, silent)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "holds no pair"),
        ([{"question": "How hot?", "answers": [], "kind": "answerable"}], "1 answerable pairs .* have no answer: 1"),
        ([{"question": "How hot?", "answers": [" "], "kind": "answerable"}], "have no answer"),
        (
            [{"question": "How hot?", "answers": ["9"], "kind": "absent"}],
            "absent or misleading pairs .* have an answer",
        ),
        ([{"question": "x" * 5000, "answers": ["9"]}], "5,000 characters"),
    ],
)
def test_pairs_that_cannot_be_scored(service: Service, tmp_path: Path, pairs: list[Any], message: str) -> None:
    with pytest.raises(TandemError, match=message):
        prepare(service.settings, service.store, options(tmp_path, pairs, adapters=()))
    assert not (service.settings.home / "comparisons").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"modes": ("rag", "best")}, "no mode 'best'"),
        ({"modes": ("tuned",), "adapters": ()}, "no adapter is active"),
        ({"adapters": ("gone",)}, "gone"),
        ({"limit": 0}, "--limit is 0"),
    ],
)
def test_options_that_cannot_be(service: Service, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(TandemError, match=message):
        prepare(service.settings, service.store, options(tmp_path, **more))


def test_answers_of_one_kind_are_told(service: Service, tmp_path: Path) -> None:
    save_fake_adapter(service.settings.home, "good")
    only = [pair for pair in many_pairs(15) if pair["answers"]]
    prepared, folder = compared(service, options(tmp_path, only))
    body = report(service, prepared, folder)
    assert any(
        "whether an arm refuses when it should was not measured" in reason for reason in body["verdict"]["reasons"]
    )
    assert not body["verdict"]["activate_adapter"]
    assert body["refusal_curve"] == {}


def test_every_beginning_of_a_sample_is_fair(tmp_path: Path) -> None:
    items = read_items(write_pairs(tmp_path / "p.jsonl", many_pairs(20)))
    order = sample(items, None, 0)
    assert sorted(item.pair.id for item in order) == sorted(item.pair.id for item in items)
    for size in range(5, 101, 5):
        kinds = Counter(item.pair.kind for item in order[:size])
        assert abs(kinds["answerable"] - 0.6 * size) <= 1.5
        assert abs(kinds["absent"] - 0.2 * size) <= 1
    assert sample(items, 10, 0) == order[:10] and sample(items, 10, 1) != order[:10]
    assert sample(list(reversed(items)), None, 0) == order, "the order of the file does not matter"


def test_quick_stops_in_time(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_fake_adapter(service.settings.home, "good")
    monkeypatch.setattr("service.compare.run.QUICK_SECONDS", -1.0)
    prepared, folder = compared(service, options(tmp_path, many_pairs(50), quick=True))
    assert len(prepared.items) == 100
    body = report(service, prepared, folder)
    assert body["questions"]["asked"] == 1
    assert "1 of 100 questions were asked; the sample is still fair." in body["verdict"]["reasons"]


def test_records_survive_what_a_kill_leaves(service: Service, tmp_path: Path) -> None:
    prepared, folder = compared(service, options(tmp_path, adapters=()))
    path = folder / ANSWERS_FILE
    records = read_records(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert read_records(path) == records[:-1]
    append_records(path, records[-1:])
    assert read_records(path) == records


def test_freshness_counts_old_facts(make_service: MakeService, library: Path, home: Path, tmp_path: Path) -> None:
    """The base model here has learned the old fact by heart; with passages it reads what they say."""

    class Reader(ArmGenerator):
        def generate(self, prompt: Any, **rest: Any) -> Any:
            shown = prompt.messages[-1]["content"]
            asked = "At which temperature does iron melt?"
            old, new = "Iron melts at 1538 degrees [1].", "Iron melts at 1541 degrees [1]."
            told = old if "1538" in shown or "[1]" not in shown else new if "1541" in shown else ""
            self.scripts = {None: {asked: told} if told else {}}
            yield from super().generate(prompt, **rest)

    corpus = library / "corpus"
    before = {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    service = make_service(Reader({}))
    pairs = [pair for pair in PAIRS if pair["id"] in "ia"]
    pairs[0] = {**pairs[0], "answers": ["1538"]}
    prepared = prepare(service.settings, service.store, options(tmp_path, pairs, adapters=()))
    assert service.answerer is not None
    body = freshness(prepared, service.store, service.answerer, 5, silent)
    (fact,) = body["facts"]
    assert (fact["old"], fact["new"]) == ("1538", "1541")
    assert body["changed"]["rag"] == {"new": 1, "old": 0, "refused": 0, "other": 0}
    assert body["changed"]["base"] == {"new": 0, "old": 1, "refused": 0, "other": 0}
    assert body["deleted"]["base"] == {"told": 1, "refused": 0, "other": 0}
    assert body["deleted"]["rag"] == {"told": 0, "refused": 1, "other": 0}
    assert {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()} == before
    with service.store.read() as snapshot:
        assert snapshot.generation.number == 1
        assert {row["corpus"] for row in snapshot.list_documents()} == {str(corpus)}
    assert not list(home.glob("tandem-compare-*"))


def test_freshness_needs_a_fact(service: Service, tmp_path: Path) -> None:
    pairs = [{"id": "x", "question": "What rises?", "answers": ["something else"], "document": "bread.md"}]
    prepared = prepare(service.settings, service.store, options(tmp_path, pairs, adapters=()))
    assert service.answerer is not None
    with pytest.raises(TandemError, match="No fact of the pairs can be changed"):
        freshness(prepared, service.store, service.answerer, 5, silent)


def test_a_corpus_that_is_gone_costs_only_that_number(service: Service, library: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(library / "corpus", corpus)
    sync(service.store, [corpus], HashingEmbedder(), ChunkSize(40, 8))
    prepared = prepare(service.settings, service.store, options(tmp_path, adapters=()))
    shutil.rmtree(corpus)
    assert service.answerer is not None
    assert changed_fact(prepared, service.store, service.answerer, silent)["seconds"].get("re-index", 1) > 0


def test_format_checks(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}')
    fits = schema_check(schema)
    assert fits('{"a": 1}') and not fits('{"a": "1"}') and not fits("a is 1") and not fits('{"b": 1}')
    matches = pattern_check(r"\d+ degrees\.?")
    assert matches("1538 degrees.") and not matches("It is 1538 degrees.")
    for make in (lambda: pattern_check("("), lambda: schema_check(tmp_path / "none.json")):
        with pytest.raises(TandemError):
            make()
    schema.write_text('{"type": "thing"}')
    with pytest.raises(TandemError, match="no JSON Schema"):
        schema_check(schema)


def test_an_item_knows_what_is_right() -> None:
    assert item("How hot?", "9").answerable and not item("How hot?").answerable
