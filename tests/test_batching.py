"""Several requests on one model: each says what it says alone, and none keeps the model from the others."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import wait_until
from small_models import make_tokenizer, save_adapter, save_small_model

import tuner.together
from indexer.errors import TandemError
from service.admission import Admission
from tuner.basemodel import BaseModel, load_base_model
from tuner.batching import Batch
from tuner.decoding import Steps
from tuner.generation import Piece, TorchGenerator
from tuner.prompt import Prompt, Source, build_prompt
from tuner.together import Part, can_read_together, read_together

WORDS = "the queen of the hive lays eggs while workers guard honey near old oak trees in late summer".split()
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 8}}, "required": ["a"]}


@pytest.fixture(scope="module", params=["none", "int8"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("small") / "model", window=1024)
    return load_base_model(str(folder), cache=folder.parent, device="cpu", quantisation=request.param)


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[BaseModel, dict[str, Path]]:
    folder = save_small_model(tmp_path / "model", window=1024)
    base = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
    return base, {name: save_adapter(tmp_path / name, base, seed=seed) for seed, name in enumerate("ab", 1)}


def prompts(tokenizer: Any, count: int, words: int = 12) -> list[Prompt]:
    """Prompts of many lengths, over none to three passages."""
    rng = random.Random(5)
    made = []
    for number in range(count):
        sources = [
            Source(" ".join(rng.choices(WORDS, k=2)), " ".join(rng.choices(WORDS, k=rng.randint(1, words))))
            for _ in range(number % 4)
        ]
        question = " ".join(rng.choices(WORDS, k=rng.randint(1, 9))) + "?"
        made.append(build_prompt(tokenizer, question, sources or None, limit=900))
    return made


def said(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def together(asked: Sequence[Any], delay: float = 0.002) -> list[list[Piece]]:
    """What each of the iterators gives, all consumed at once by a thread of its own that begins a little later."""
    pieces: list[list[Piece]] = [[] for _ in asked]
    errors: list[BaseException] = []

    def consume(number: int) -> None:
        time.sleep(number * delay)
        try:
            pieces[number].extend(asked[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if errors:
        raise errors[0]
    return pieces


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each shared pass was of."""
    counts = []

    def counted(base: BaseModel, parts: Sequence[Part]) -> Any:
        counts.append(len(parts))
        return read_together(base, parts)

    monkeypatch.setattr(tuner.together, "read_together", counted)
    return counts


@pytest.mark.parametrize("apart", [False, True])
def test_twelve_requests_say_what_each_says_alone(small: BaseModel, shared: list[int], apart: bool) -> None:
    alone = TorchGenerator(small, passage_bytes=2**24, apart=apart)
    beside = TorchGenerator(small, passage_bytes=2**24, apart=apart, at_once=5)
    asked = prompts(small.tokenizer, 12)
    expected = [list(alone.generate(prompt, max_tokens=10 + 7 * n)) for n, prompt in enumerate(asked)]
    found = together([beside.generate(prompt, max_tokens=10 + 7 * n) for n, prompt in enumerate(asked)])
    assert [said(pieces) for pieces in found] == [said(pieces) for pieces in expected]
    assert [pieces[-1].finish_reason for pieces in found] == [pieces[-1].finish_reason for pieces in expected]
    assert len({len(prompt.ids) for prompt in asked}) > 8
    assert max(shared) > 2, "otherwise this shows nothing"


def test_rows_of_several_requests_have_the_bits_of_one_by_one(adapted: tuple[BaseModel, dict[str, Path]]) -> None:
    base, folders = adapted
    generator, rng = TorchGenerator(base, folders), random.Random(2)
    with generator._attached.selected("a"):
        pairs = []
        for length in (30, 3, 61, 200, 17, 18, 19, 20, 21, 22):
            ids = [rng.randrange(3, 250) for _ in range(length)]
            pairs.append((Steps(base, length), Steps(base, length + 40)))
            for steps in pairs[-1]:
                steps.read_prompt(ids, lambda: False)
        for _ in range(3):
            drafts = [[rng.randrange(3, 250) for _ in range(rng.choice((1, 1, 4, 11)))] for _ in pairs]
            logits = read_together(
                base, [Part(steps.cache, draft) for (steps, _), draft in zip(pairs, drafts, strict=True)]
            )
            for draft, found, (one, other) in zip(drafts, logits, pairs, strict=True):
                expected = torch.stack([other.read((token,))[-1] for token in draft])
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
                assert one.cache.length == other.cache.length
                kept, wanted = (steps.cache.copy(0, steps.cache.length) for steps in (one, other))
                assert torch.equal(kept.keys, wanted.keys)
                assert torch.equal(kept.values, wanted.values)


def test_requests_of_different_adapters_and_forms_do_not_mix(
    adapted: tuple[BaseModel, dict[str, Path]], shared: list[int]
) -> None:
    base, folders = adapted
    generator = TorchGenerator(base, folders, at_once=9)
    forms = [(name, schema) for schema in (None, None, SCHEMA) for name in (None, "a", "b")]
    asked = list(zip(prompts(base.tokenizer, 9), forms, strict=True))

    def ask() -> list[Iterator[Piece]]:
        return [
            generator.generate(prompt, max_tokens=30, adapter=adapter, schema=schema)
            for prompt, (adapter, schema) in asked
        ]

    expected = [list(pieces) for pieces in ask()]
    assert shared == [], "one after the other"
    assert together(ask(), delay=0) == expected
    assert max(shared) > 1
    plain = [said(list(generator.generate(prompt, max_tokens=30))) for prompt, (_, schema) in asked if not schema]
    changed = [said(one) != other for one, other in zip(expected[:6], plain, strict=True)]
    assert changed == [False, True, True] * 2


def test_a_long_prompt_is_read_between_the_steps_of_others(small: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.decoding.PREFILL", 20)
    passes: list[int] = []
    whole = Batch._logits

    def noted(self: Batch, taken: Any) -> Any:
        passes.extend(len(read.ids) for read in taken)
        return whole(self, taken)

    monkeypatch.setattr(Batch, "_logits", noted)
    generator = TorchGenerator(small, at_once=2)
    running = generator.generate(Prompt((9, 8, 7), (), 0), max_tokens=800, schema={"type": "string", "minLength": 700})
    consumer = threading.Thread(target=lambda: list(running))
    consumer.start()
    wait_until(lambda: len(passes) > 5)
    list(generator.generate(Prompt(tuple(range(3, 203)), (), 0), max_tokens=1))
    parts = [place for place, length in enumerate(passes) if length == 20]
    assert len(parts) == 10
    steps = sum(length == 1 for length in passes[parts[0] : parts[-1]])
    assert steps >= 5, "a step for every part, but where the machine was busy with something else"
    assert consumer.is_alive()
    consumer.join(60)


def test_who_leaves_is_gone_and_the_others_go_on(small: BaseModel) -> None:
    generator = TorchGenerator(small, at_once=3)
    first, second, third = prompts(small.tokenizer, 3)
    expected = said(list(generator.generate(second, max_tokens=40)))
    cancel = threading.Event()
    cancelled = generator.generate(first, max_tokens=500, cancel=cancel)
    closed = generator.generate(third, max_tokens=500)
    stays = generator.generate(second, max_tokens=40)
    begun = [next(each) for each in (cancelled, closed, stays)]
    waiting: list[Piece] = []
    thread = threading.Thread(target=lambda: waiting.extend(generator.generate(first, max_tokens=3)))
    thread.start()
    time.sleep(0.2)
    assert waiting == [], "three are inside"
    cancel.set()
    assert list(cancelled)[-1].finish_reason == "cancelled"
    thread.join(20)
    assert waiting[-1].finish_reason in ("stop", "length")
    closed.close()  # type: ignore[attr-defined]
    assert begun[2].text + said(list(stays)) == expected
    assert not generator._batch._inside and not generator._batch._waiting


def test_a_request_that_waits_for_the_model_can_leave(small: BaseModel) -> None:
    generator = TorchGenerator(small, at_once=2)
    cancel, pieces = threading.Event(), list[Piece]()
    with generator._batch.alone():
        asking = generator.generate(prompts(small.tokenizer, 1)[0], max_tokens=3, cancel=cancel)
        thread = threading.Thread(target=lambda: pieces.extend(asking))
        thread.start()
        wait_until(lambda: bool(generator._batch._waiting))
        cancel.set()
        thread.join(5)
        assert pieces == [Piece("", 0, "cancelled")]
        assert not generator._batch._waiting


def test_a_request_that_nobody_consumes_does_not_hold_the_others_up(small: BaseModel) -> None:
    generator = TorchGenerator(small, at_once=2)
    one, other = prompts(small.tokenizer, 2)
    expected = list(generator.generate(other, max_tokens=30))
    idle = generator.generate(one, max_tokens=30)
    next(idle)
    assert list(generator.generate(other, max_tokens=30)) == expected
    # It was waited for once, not at every step.
    assert [place.is_late for place in generator._batch._inside] == [True]
    idle.close()  # type: ignore[attr-defined]


def test_what_fails_in_a_pass_ends_its_requests_and_frees_the_model(
    small: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = TorchGenerator(small, at_once=2)
    one, other = prompts(small.tokenizer, 2)
    expected = list(generator.generate(one, max_tokens=5))

    def fail(base: BaseModel, parts: Sequence[Part]) -> Any:
        raise RuntimeError("out of memory")

    assert can_read_together(small)
    generator._batch._can_share = True
    monkeypatch.setattr(tuner.together, "read_together", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        together([generator.generate(prompt, max_tokens=200) for prompt in (one, other)], delay=0)
    assert list(generator.generate(one, max_tokens=5)) == expected


def test_an_adapter_that_is_replaced_stays_for_who_is_using_it(adapted: tuple[BaseModel, dict[str, Path]]) -> None:
    base, folders = adapted
    generator = TorchGenerator(base, {"x": folders["a"]}, at_once=2)
    prompt = prompts(base.tokenizer, 4)[3]
    old, plain = (said(list(generator.generate(prompt, max_tokens=40, adapter=name))) for name in ("x", None))
    running = generator.generate(prompt, max_tokens=40, adapter="x")
    begun = next(running).text
    generator.register("x", folders["b"])
    new = said(list(generator.generate(prompt, max_tokens=40, adapter="x")))
    generator.unregister("x")
    assert begun + said(list(running)) == old
    with pytest.raises(TandemError, match="no adapter called 'x'"):
        list(generator.generate(prompt, max_tokens=1, adapter="x"))
    assert said(list(generator.generate(prompt, max_tokens=40))) == plain
    assert len({old, new, plain}) == 3
    left = base.compiled._adapters if base.compiled else generator._attached._peft.peft_config
    assert not left, "nobody holds either of them now"


def test_passages_read_while_documents_change_are_not_kept(small: BaseModel) -> None:
    generator = TorchGenerator(small, passage_bytes=2**24, at_once=2)
    prompt, pieces = build_prompt(small.tokenizer, "Who?", [Source("Bees", "A secret.")], limit=900), list[Piece]()
    with generator._batch.alone():
        thread = threading.Thread(target=lambda: pieces.extend(generator.generate(prompt, max_tokens=2)))
        thread.start()
        wait_until(lambda: bool(generator._batch._waiting))
        generator.forget_passages()
    thread.join(20)
    assert pieces and len(generator._reader.passages) == 0
    list(generator.generate(prompt, max_tokens=1))
    assert len(generator._reader.passages) == 1


def test_closing_waits_for_those_inside_and_refuses_the_next(small: BaseModel) -> None:
    generator = TorchGenerator(small, at_once=2)
    one, other = prompts(small.tokenizer, 2)
    running = generator.generate(one, max_tokens=20)
    next(running)
    closing = threading.Thread(target=generator.close)
    closing.start()
    wait_until(lambda: generator._batch._is_closed)
    with pytest.raises(TandemError) as caught:
        list(generator.generate(other, max_tokens=1))
    assert caught.value.code == "unavailable"
    assert closing.is_alive()
    assert list(running)[-1].finish_reason in ("stop", "length")
    closing.join(5)
    assert not closing.is_alive()


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "settings", "shares"),
    [
        ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, True),
        ("Qwen3Config", {**SMALL, "num_key_value_heads": 2, "head_dim": 8}, True),
        # Its attention is its own, and Gemma 2 has layers that do not see everything.
        ("FalconConfig", {**SMALL, "multi_query": True, "new_decoder_architecture": False}, False),
        ("Gemma2Config", {**SMALL, "num_key_value_heads": 2, "head_dim": 8}, False),
    ],
)
def test_families_that_cannot_share_a_pass_take_turns(
    tmp_path: Path, config: str, settings: dict[str, Any], shares: bool
) -> None:
    import transformers

    tokenizer = make_tokenizer()
    values = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **settings}
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**values))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    base = load_base_model(str(tmp_path / "model"), cache=tmp_path, device="cpu")
    alone, beside = TorchGenerator(base), TorchGenerator(base, at_once=3)
    asked = [Prompt(tuple(range(3, 3 + length)), (), 0) for length in (5, 40, 90)]
    expected = [list(alone.generate(prompt, max_tokens=12)) for prompt in asked]
    assert together([beside.generate(prompt, max_tokens=12) for prompt in asked], delay=0) == expected
    assert can_read_together(base) is shares


def test_so_many_are_let_in_and_no_more() -> None:
    admission, never, inside, most = Admission(50, 30.0, 3), threading.Event(), 0, 0
    lock = threading.Lock()

    def work(key: str) -> None:
        nonlocal inside, most
        for _ in range(10):
            with admission.enter(never, key):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work, args=(str(number % 2),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 3 and len(admission) == 0


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [3, 8])
def test_real_weights_say_together_what_they_say_alone(weights_cache: Path, shared: list[int], at_once: int) -> None:
    base = load_base_model("bundled", cache=weights_cache, quantisation="int8", device="cpu")
    words = random.Random(5).choices(WORDS, k=2000)
    asked = []
    for number in range(12):
        texts = [words[start : start + 10 + 6 * number] for start in range(40 * number, 40 * number + 400, 130)]
        sources = [Source("Configuration", " ".join(text)) for text in texts[: number % 4]]
        question = f"What do the settings {' and '.join(words[: 1 + number])} do?"
        asked.append(build_prompt(base.tokenizer, question, sources or None, limit=900))
    assert len({len(prompt.ids) for prompt in asked}) > 9
    alone, beside = TorchGenerator(base), TorchGenerator(base, at_once=at_once)
    expected = [said(list(alone.generate(prompt, max_tokens=16 + n))) for n, prompt in enumerate(asked)]
    found = together([beside.generate(prompt, max_tokens=16 + n) for n, prompt in enumerate(asked)], delay=0.08)
    assert [said(pieces) for pieces in found] == expected
    assert max(shared) > 2
