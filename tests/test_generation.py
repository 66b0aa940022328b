"""Generation: the same ids as the library's greedy search, text that is whole, and a model that is free again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from small_models import make_tokenizer, save_small_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from indexer.errors import TandemError
from tuner.basemodel import BaseModel, load_base_model
from tuner.generation import Piece, TorchGenerator
from tuner.prompt import Prompt, Source, build_prompt
from tuner.stream import TextStream, is_looping


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("small") / "model")
    return load_base_model(str(folder), cache=folder.parent, device="cpu")


@pytest.fixture
def generator(small: BaseModel) -> Iterator[TorchGenerator]:
    made = TorchGenerator(small)
    yield made
    made.close()


def ask(generator: TorchGenerator, question: str) -> Prompt:
    return build_prompt(generator.tokenizer, question, [Source("Bees", "A hive has a queen.")], limit=500)


def library_ids(base: BaseModel, prompt: Prompt, most: int) -> list[int]:
    """The oracle: transformers' own greedy search."""
    ids = torch.tensor([prompt.ids])
    output = base.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=sorted(base.eos_ids),
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(prompt.ids) :]]


def answer(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("question", ["Who leads?", "a", "How many queens, and where? " * 12])
def test_the_same_answer_as_the_library(generator: TorchGenerator, question: str) -> None:
    prompt = ask(generator, question)
    pieces = list(generator.generate(prompt, max_tokens=20))
    ids = library_ids(generator.base, prompt, 20)
    ended = ids[-1] in generator.base.eos_ids
    whole = generator.tokenizer.decode(ids, skip_special_tokens=True)
    assert answer(pieces) == whole.rstrip("\N{REPLACEMENT CHARACTER}")
    assert pieces[-1].completion_tokens == len(ids) - ended
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop" if ended else "length"]


def test_prompts_longer_than_one_step_are_read_whole(
    generator: TorchGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = ask(generator, "Who leads?")
    whole = list(generator.generate(prompt, max_tokens=12))
    monkeypatch.setattr("tuner.decoding.PREFILL", 7)
    assert list(generator.generate(prompt, max_tokens=12)) == whole


def test_the_window_ends_an_answer_and_refuses_a_prompt_that_fills_it(small: BaseModel) -> None:
    prompt = Prompt(tuple(range(3, 103)), (), 0)
    tight = TorchGenerator(small)
    tight.window = 104
    last = list(tight.generate(prompt, max_tokens=50))[-1]
    assert last.completion_tokens <= 4
    tight.window = 100
    with pytest.raises(TandemError) as caught:
        list(tight.generate(prompt, max_tokens=50))
    assert caught.value.code == "too_large"
    with pytest.raises(TandemError, match="max_tokens"):
        list(TorchGenerator(small).generate(prompt, max_tokens=0))


def test_cancel_stops_between_two_tokens_and_frees_the_model(generator: TorchGenerator) -> None:
    cancel = threading.Event()
    pieces = []
    for piece in generator.generate(ask(generator, "Who leads?"), max_tokens=200, cancel=cancel):
        pieces.append(piece)
        cancel.set()
    assert pieces[-1].finish_reason == "cancelled"
    assert pieces[-1].completion_tokens <= pieces[0].completion_tokens + 1
    assert list(generator.generate(ask(generator, "Next?"), max_tokens=2))


def test_closing_the_iterator_frees_the_model_at_once(generator: TorchGenerator) -> None:
    running = iter(generator.generate(ask(generator, "Who leads?"), max_tokens=200))
    next(running)
    running.close()  # type: ignore[attr-defined]
    start = time.monotonic()
    assert list(generator.generate(ask(generator, "Next?"), max_tokens=1))
    assert time.monotonic() - start < 5


def test_one_request_at_a_time_and_a_waiting_one_can_leave(generator: TorchGenerator) -> None:
    running = iter(generator.generate(ask(generator, "Who leads?"), max_tokens=200))
    next(running)
    gave_up, cancel = [], threading.Event()
    waiting = threading.Thread(
        target=lambda: gave_up.extend(generator.generate(ask(generator, "Me?"), max_tokens=5, cancel=cancel))
    )
    waiting.start()
    time.sleep(0.2)
    assert gave_up == []
    cancel.set()
    waiting.join(5)
    assert gave_up == [Piece("", 0, "cancelled")]
    running.close()  # type: ignore[attr-defined]


def test_many_threads_get_the_answers_one_thread_gets(generator: TorchGenerator) -> None:
    questions = [f"Question {n}?" for n in range(6)]
    alone = [answer(list(generator.generate(ask(generator, q), max_tokens=10))) for q in questions]
    together: dict[int, str] = {}

    def run(n: int) -> None:
        together[n] = answer(list(generator.generate(ask(generator, questions[n]), max_tokens=10)))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[n] for n in range(6)] == alone


def test_an_iterator_may_be_stepped_from_several_threads(generator: TorchGenerator) -> None:
    prompt = ask(generator, "Who leads?")
    expected = list(generator.generate(prompt, max_tokens=8))
    pieces: list[Piece] = []
    running = iter(generator.generate(prompt, max_tokens=8))

    def step() -> None:
        pieces.extend(piece for piece in [next(running, None)] if piece)

    for _ in range(10):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert pieces == expected
    assert not torch.is_inference_mode_enabled()


def test_a_closed_generator_refuses(small: BaseModel) -> None:
    closed = TorchGenerator(small)
    closed.close()
    with pytest.raises(TandemError) as caught:
        list(closed.generate(ask(closed, "Who?"), max_tokens=1))
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語のテキスト", "👩‍👩‍👧‍👦 family", "a\N{REPLACEMENT CHARACTER}b", "  two  spaces\n"]
)
def test_text_comes_in_whole_characters(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    # Cut in the middle of a character, what is out is a beginning of the text.
    stream = TextStream(tokenizer)
    assert text.startswith("".join(stream.push(token) for token in ids[:-1]))


def test_words_keep_the_space_that_a_decoder_drops_at_the_start() -> None:
    """Sentencepiece decoders drop the first space of what they are given; each later word must keep its own."""
    backend = Tokenizer(models.WordLevel({"\u2581the": 0, "\u2581queen": 1, ".": 2, "?": 3}, unk_token="?"))
    backend.decoder = decoders.Metaspace()
    stream = TextStream(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?"))
    assert [stream.push(token) for token in (0, 1, 0, 2)] == ["the", " queen", " the", "."]


@pytest.mark.parametrize(
    ("ids", "looping"),
    [
        ([*range(8)] * 3, True),
        ([99, *([*range(8)] * 3)], True),
        ([1, 2, 3] * 9, True),  # three tokens nine times are nine tokens three times
        ([*range(64)] * 3, True),
        ([*range(8)] * 2, False),
        ([*range(8), *range(8), *range(7), 9], False),
        ([1] * 23, False),
        ([*range(100)], False),
    ],
)
def test_a_loop_is_the_same_run_three_times(ids: list[int], looping: bool) -> None:
    assert is_looping(ids) is looping


@pytest.mark.slow
def test_the_bundled_model_answers_like_the_library(base_model: BaseModel) -> None:
    generator = TorchGenerator(base_model)
    for question in ("What is the capital of France?", "Name the colours of the rainbow."):
        prompt = build_prompt(generator.tokenizer, question, None, limit=500)
        pieces = list(generator.generate(prompt, max_tokens=24))
        expected = generator.tokenizer.decode(library_ids(base_model, prompt, 24), skip_special_tokens=True)
        assert answer(pieces) == expected
    assert "Paris" in answer(
        list(
            generator.generate(
                build_prompt(generator.tokenizer, "What is the capital of France?", None, limit=500), max_tokens=24
            )
        )
    )


@pytest.mark.slow
def test_a_degenerate_answer_is_ended(base_model: BaseModel) -> None:
    generator = TorchGenerator(base_model)
    ids = tuple(generator.tokenizer("one two three four five six seven eight nine ten " * 6)["input_ids"])
    last = list(generator.generate(Prompt(ids, (), 0), max_tokens=400))[-1]
    assert last.finish_reason == "stop"
    assert last.completion_tokens < 100
