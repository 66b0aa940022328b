"""What is kept of passages: found again in its place, same answers with it, bounded, in files, gone when it must."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import HashingEmbedder
from small_models import save_adapter, save_small_model

from indexer.chunking import ChunkSize
from indexer.store import Store
from indexer.sync import sync
from service.answercache import CachedGenerator
from service.assembly import load_answerer
from service.question import Question
from service.running import Service
from service.settings import Settings
from tuner.basemodel import BaseModel, load_base_model
from tuner.decoding import Steps
from tuner.generation import TorchGenerator
from tuner.kept import Kept
from tuner.keptfiles import KeptFiles
from tuner.keptparts import KeptParts
from tuner.prompt import Prompt, Source, build_prompt

BEES = Source("Bees", "A hive has a queen and many workers.")
WAX = Source("Wax", "Wax is made in summer by young bees.")
OAKS = Source("Oaks", "Oaks grow old and stand alone.")


@pytest.fixture(scope="module", params=["none", "int8"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("small") / "model", window=1024)
    return load_base_model(str(folder), cache=folder.parent, device="cpu", quantisation=request.param)


def prompt_of(base: BaseModel, question: str, sources: Sequence[Source]) -> Prompt:
    return build_prompt(base.tokenizer, question, list(sources), limit=900)


def text_of(generator: TorchGenerator, prompt: Prompt, adapter: str | None = None) -> str:
    return "".join(piece.text for piece in generator.generate(prompt, max_tokens=12, adapter=adapter))


class Read(list[int]):
    """How many tokens each part had that was read from now on, and in how many passes they were."""

    passes = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read = Steps.read

        def noted(steps: Steps, ids: Sequence[int], last: int = 1, parts: Sequence[int] = ()) -> Any:
            self.extend(parts)
            self.passes += 1
            return read(steps, ids, last, parts)

        monkeypatch.setattr(Steps, "read", noted)


def logits_of(generator: TorchGenerator, prompt: Prompt) -> torch.Tensor:
    steps = Steps(generator.base, len(prompt.ids))
    found: torch.Tensor = generator._reader.read(steps, prompt, None, lambda: False)
    return found.clone()


def test_only_what_differs_from_earlier_prompts_is_read(small: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TorchGenerator(small, passage_bytes=2**24)
    logits_of(generator, prompt_of(small, "Who?", [BEES, WAX]))
    read = Read(monkeypatch)
    again = prompt_of(small, "Where is it made?", [BEES, WAX])
    logits_of(generator, again)
    assert len(read) == 1 and read[0] < len(again.ids) / 2  # the question
    read.clear()
    logits_of(generator, prompt_of(small, "Where is it made?", [BEES, OAKS]))
    assert len(read) == 2  # the other passage and the question
    read.clear()
    logits_of(generator, prompt_of(small, "Where is it made?", [WAX, BEES]))
    assert len(read) == 3  # the first of them stands elsewhere now
    # What the library computes of a part depends on what is read with it.
    assert read.passes == (3 if small.compiled else 6)
    kept = generator.passages
    assert (kept.hits, kept.misses) == (3, 5) and kept.bytes > 0


def test_an_answer_has_the_same_bits_with_what_was_kept(small: BaseModel) -> None:
    with_bees = prompt_of(small, "Where?", [BEES, WAX])
    fresh = logits_of(TorchGenerator(small, passage_bytes=2**24), with_bees)
    generator = TorchGenerator(small, passage_bytes=2**24)
    for sources in ([BEES], [WAX, BEES], [BEES, OAKS], [BEES, WAX]):
        logits_of(generator, prompt_of(small, "Who?", sources))
    assert torch.equal(logits_of(generator, with_bees), fresh)
    assert torch.equal(logits_of(TorchGenerator(small), with_bees), fresh)
    # And within rounding those of reading it as one part.
    whole = Steps(small, len(with_bees.ids)).read(with_bees.ids)[-1]
    assert (fresh - whole).abs().max() < (1e-4 if small.quantisation == "none" else 0.3)


def test_nothing_is_kept_without_room(small: BaseModel) -> None:
    generator = TorchGenerator(small)
    text_of(generator, prompt_of(small, "Who?", [BEES, WAX]))
    assert len(generator._reader.passages) == 0


def kept_of(number: float) -> Kept:
    return Kept(torch.full((2, 1, 4, 2), number), torch.full((2, 1, 4, 2), -number))


def key_of(name: str) -> tuple[str, str | None, tuple[int, ...]]:
    return name, None, (1, 2)


def test_what_comes_again_goes_to_files_when_it_must_make_room(tmp_path: Path) -> None:
    one = kept_of(1.0)
    parts = KeptParts(one.bytes)
    files = KeptFiles(tmp_path / "now", 10**6)
    parts.use(files)
    for name in ("a", "b"):  # each asked for once
        assert parts.get(key_of(name)) is None
        parts.put(key_of(name), kept_of(1.0))
    assert len(files) == 0
    assert parts.get(key_of("a")) is None  # asked for again
    parts.put(key_of("a"), kept_of(3.0))
    parts.put(key_of("c"), kept_of(4.0))
    assert len(files) == 1
    found = parts.get(key_of("a"))
    assert found is not None and torch.equal(found.keys, kept_of(3.0).keys)
    assert torch.equal(found.values, kept_of(3.0).values)
    parts.clear()
    assert parts.get(key_of("a")) is None and not list((tmp_path / "now").iterdir())


def test_files_are_bounded_private_and_found_after_a_start(tmp_path: Path) -> None:
    folder = tmp_path / "kept" / "now"
    files = KeptFiles(folder, 10**6)
    for number, name in enumerate("abc"):
        files.put(key_of(name), kept_of(number))
        path = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(path, (number, number))  # written a second apart
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    one = files.bytes // 3
    again = KeptFiles(folder, 2 * one)
    assert (len(again), again.bytes) == (2, 2 * one)
    assert again.get(key_of("a")) is None
    found = again.get(key_of("c"))
    assert found is not None and torch.equal(found.keys, kept_of(2.0).keys)
    again.put(key_of("d"), kept_of(4.0))  # "b" was used longest ago
    assert again.get(key_of("b")) is None and again.get(key_of("c")) is not None
    KeptFiles(folder.with_name("later"), 10**6)
    assert not folder.exists()


def test_a_damaged_file_is_read_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = KeptFiles(tmp_path / "now", 10**6)
    files.put(key_of("a"), kept_of(1.0))
    (path,) = (tmp_path / "now").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    assert files.get(key_of("a")) is None
    assert "cannot be used and is deleted" in caplog.text and not path.exists()
    files.put(key_of("a"), kept_of(1.0))
    assert files.get(key_of("a")) is not None


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    files = KeptFiles(tmp_path / "file" / "now", 10**6)
    files.put(key_of("a"), kept_of(1.0))
    assert files.get(key_of("a")) is None and "is kept in memory only" in caplog.text


def test_a_restart_goes_on_with_what_came_again(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model", window=1024)
    small = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
    adapter = save_adapter(tmp_path / "adapter", small, seed=1, name="a")

    def started(generation: int) -> CachedGenerator:
        base = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
        generator = CachedGenerator(base, entries=0, files=tmp_path / "passages", file_bytes=2**24, passage_bytes=2**24)
        generator.register("a", adapter)
        generator.see(generation)
        return generator

    first = started(7)
    prompt = prompt_of(small, "Who?", [BEES, WAX])
    said = [text_of(first, prompt, "a") for _ in range(2)]
    first.write_passages()
    later = started(7)
    assert text_of(later, prompt, "a") == said[0] == said[1]
    assert len(later._reader.passages) == 2 and len(list((tmp_path / "passages").glob("*/*"))) == 2
    # Read with the adapter, so for the bare model they are not there.
    text_of(later, prompt)
    assert len(later._reader.passages) == 4
    # The same matrices with another weight are another adapter.
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 64}))
    later.register("louder", adapter)
    assert text_of(later, prompt, "louder") != said[0] and len(later._reader.passages) == 6
    later.see(8)
    assert len(later._reader.passages) == 0 and not list((tmp_path / "passages").glob("*/*"))
    later.write_passages()
    text_of(again := started(9), prompt, "a")
    again.write_passages()
    assert not list((tmp_path / "passages").glob("*/*"))  # asked for once


def test_files_of_another_model_or_machine_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_small_model(tmp_path / "model", window=1024)

    def folder_of_files() -> str:
        base = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
        generator = TorchGenerator(base, passage_bytes=2**20)
        generator._reader.keep_in(tmp_path / "passages", 1, 2**20)
        files = generator._reader.passages._files
        assert files is not None
        return str(files._folder)

    found = [folder_of_files(), folder_of_files()]
    assert found[0] == found[1]
    with monkeypatch.context() as changed:
        changed.setattr(torch, "get_num_threads", lambda: 61)
        found.append(folder_of_files())
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 5e5}))
    found.append(folder_of_files())
    assert len(set(found)) == 3


def test_a_service_that_ends_writes_what_came_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_model(tmp_path / "model", window=1024)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "bees.txt").write_text("A hive has a queen. Bees make wax in summer.")
    settings = Settings(
        home=tmp_path / "home",
        base_model=str(tmp_path / "model"),
        device="cpu",
        answer_cache=0,
        mode="rag",
        min_relevance=0,
    )
    store = Store(settings.home)
    sync(store, [tmp_path / "corpus"], HashingEmbedder(), ChunkSize(40, 8))
    answerer = load_answerer(settings, store, embedder=HashingEmbedder(), keep_answers=True)
    service = Service(settings, store, answerer)
    for question in ("What has a hive?", "Who makes wax?", "What has a queen?"):
        answerer.answer(Question(question))
    assert answerer.generator.passages.hits > 0  # type: ignore[attr-defined]
    service.close()
    assert list((settings.home / "passages").glob("*/*"))
