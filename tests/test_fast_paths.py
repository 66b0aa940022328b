"""Every shortcut of the engine against reading and choosing the plain way: same text, and how far apart logits are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import save_adapter, save_small_model
from torch import nn
from transformers import DynamicCache

from indexer.errors import TandemError
from tuner.basemodel import BaseModel, load_base_model
from tuner.blocks import passage_spans
from tuner.decoding import Steps, greedy_tokens
from tuner.generation import Piece, TorchGenerator
from tuner.grouploss import block_mask
from tuner.int8 import Int8Linear
from tuner.keptparts import KeptParts
from tuner.lookup import Lookup
from tuner.prompt import Prompt, Source, build_prompt
from tuner.rotation import Rotation
from tuner.stepcache import Kept, StepCache

WORDS = "the queen of the hive lays eggs while workers guard honey near old oak trees in late summer".split()


@pytest.fixture(scope="module", params=["none", "int8"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("small") / "model", window=1024)
    return load_base_model(str(folder), cache=folder.parent, device="cpu", quantisation=request.param)


def prompts(tokenizer: Any, count: int) -> Iterator[Prompt]:
    """Prompts over one to three passages, some of which come again."""
    rng = random.Random(5)
    shelf = [Source(" ".join(rng.choices(WORDS, k=2)), " ".join(rng.choices(WORDS, k=12))) for _ in range(6)]
    for _ in range(count):
        question = " ".join(rng.choices(WORDS, k=5)) + "?"
        yield build_prompt(tokenizer, question, rng.sample(shelf, rng.randint(1, 3)), limit=900)


def plain_ids(base: BaseModel, prompt: Prompt, most: int, *, apart: bool = False) -> tuple[list[int], torch.Tensor]:
    """The oracle: the whole prompt in one pass, one token a step, the library's cache. Also its first logits."""
    spans = passage_spans(base.tokenizer, prompt) if apart else ()
    mask = block_mask(len(prompt.ids), spans, "cpu", torch.float32) if spans else None
    cache = DynamicCache(config=base.model.config)
    ids: list[int] = []
    with torch.inference_mode():
        fed = torch.tensor([prompt.ids])
        logits = base.model(input_ids=fed, attention_mask=mask, past_key_values=cache).logits[0, -1]
        first = logits
        while len(ids) < most and (token := int(logits.argmax())) not in base.eos_ids:
            ids.append(token)
            logits = base.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
    return ids, first


def said(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def text_of(base: BaseModel, ids: list[int]) -> str:
    return str(base.tokenizer.decode(ids, skip_special_tokens=True)).rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("apart", [False, True])
def test_twenty_prompts_have_the_text_of_plain_decoding(small: BaseModel, apart: bool) -> None:
    generator = TorchGenerator(small, passage_bytes=2**24, apart=apart)
    for prompt in prompts(small.tokenizer, 20):
        ids, _ = plain_ids(small, prompt, 24, apart=apart)
        pieces = list(generator.generate(prompt, max_tokens=24))
        # A text that repeats itself is ended early; what there is must be the same.
        whole = text_of(small, ids)
        assert said(pieces) == whole or (pieces[-1].finish_reason == "stop" and whole.startswith(said(pieces)))
        assert pieces[-1].completion_tokens <= 24


def test_joined_passages_have_the_logits_of_the_block_mask(small: BaseModel) -> None:
    generator = TorchGenerator(small, passage_bytes=2**24, apart=True)
    worst = 0.0
    for prompt in prompts(small.tokenizer, 6):
        _, expected = plain_ids(small, prompt, 1, apart=True)
        _, causal = plain_ids(small, prompt, 1)
        steps = Steps(small, len(prompt.ids))
        found = generator._reader.read(steps, prompt, None, lambda: False)
        assert steps.cache.length == len(prompt.ids)
        worst = max(worst, float((found - expected).abs().max()))
        if prompt.passages > 1:
            assert (causal - expected).abs().max() > 0.05  # the mask hides something, so this test can fail
    assert worst < (2e-3 if small.quantisation == "none" else 0.6)


def test_a_passage_is_read_once_and_found_again_at_another_place(small: BaseModel) -> None:
    generator = TorchGenerator(small, passage_bytes=2**24, apart=True)
    bees, wax = Source("Bees", "A hive has a queen."), Source("Wax", "Wax is made in summer.")
    first = build_prompt(small.tokenizer, "Who?", [bees, wax], limit=900)
    list(generator.generate(first, max_tokens=1))
    kept = generator._reader.passages
    assert (len(kept), len(generator._reader.heads)) == (2, 1)
    list(generator.generate(build_prompt(small.tokenizer, "Where?", [bees, wax], limit=900), max_tokens=1))
    assert (len(kept), len(generator._reader.heads)) == (2, 1)


def test_what_is_kept_of_a_deleted_passage_goes(small: BaseModel) -> None:
    generator = TorchGenerator(small, passage_bytes=2**24, apart=True)
    prompt = build_prompt(small.tokenizer, "Who?", [Source("Bees", "A secret.")], limit=900)
    list(generator.generate(prompt, max_tokens=1))
    ((start, end),) = passage_spans(small.tokenizer, prompt)
    key = ("passage", None, prompt.ids[start:end])
    assert key in generator._reader.passages
    generator.forget_passages()
    assert key not in generator._reader.passages
    assert generator._reader.passages.bytes == 0
    # While another question is being answered it does not wait, and it is done before the next prompt is read.
    running = iter(generator.generate(prompt, max_tokens=50))
    next(running)
    generator.forget_passages()
    running.close()  # type: ignore[attr-defined]
    list(generator.generate(build_prompt(small.tokenizer, "Who?", None, limit=900), max_tokens=1))
    assert key not in generator._reader.passages


def test_keys_of_one_adapter_are_never_used_for_another(tmp_path: Path) -> None:
    base = load_base_model(str(save_small_model(tmp_path / "model", window=1024)), cache=tmp_path, device="cpu")
    one, two = (save_adapter(tmp_path / name, base, seed=seed, name=name) for name, seed in (("one", 1), ("two", 2)))
    generator = TorchGenerator(base, {"a": one}, passage_bytes=2**24, apart=True)
    prompt = next(prompts(base.tokenizer, 1))

    def ask(adapter: str | None, of: TorchGenerator = generator) -> str:
        return said(list(of.generate(prompt, max_tokens=16, adapter=adapter)))

    bare, with_one = ask(None), ask("a")
    generator.register("a", two)
    with_two = ask("a")
    generator.unregister("a")
    assert ask(None) == bare
    fresh = TorchGenerator(
        load_base_model(str(tmp_path / "model"), cache=tmp_path, device="cpu"),
        {"b": two},
        passage_bytes=2**24,
        apart=True,
    )
    assert with_two == ask("b", fresh)
    assert len({bare, with_one, with_two}) == 3


def test_a_model_without_rotary_positions_is_told(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = save_small_model(tmp_path / "model")
    config = GPT2Config(vocab_size=300, n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    base = load_base_model(str(folder), cache=tmp_path, device="cpu")
    with pytest.raises(TandemError, match="cannot be read apart") as caught:
        TorchGenerator(base, passage_bytes=1, apart=True)
    assert caught.value.code == "conflict"
    # Without the setting it answers as ever.
    assert list(TorchGenerator(base).generate(Prompt((5, 6, 7), (), 0), max_tokens=3))


def test_moved_keys_are_those_read_at_that_place(small: BaseModel) -> None:
    rotation = Rotation(small)
    here, there = rotation._first_keys([9, 8, 7], 0), rotation._first_keys([9, 8, 7], 611)
    moved = rotation.moved(Kept(here, here), 611)
    torch.testing.assert_close(moved.keys, there, rtol=0, atol=2e-4 * float(there.abs().max()))
    assert (here - there).abs().max() > 0.1


@pytest.mark.parametrize("fine", [False, True])
def test_a_row_of_an_int8_layer_does_not_depend_on_the_others(fine: bool) -> None:
    torch.manual_seed(3)
    layer = Int8Linear(nn.Linear(48, 20), fine=fine)
    rows = torch.randn(1, 9, 48) * torch.logspace(-2, 3, 9)[None, :, None]
    together = layer(rows)
    for place in range(9):
        assert torch.equal(layer(rows[:, place : place + 1].clone()), together[:, place : place + 1])


class KnownSteps:
    """Steps of a model that goes on in one way only, whatever it is fed; notes what it was fed and has kept."""

    def __init__(self, prompt: list[int], answer: list[int]) -> None:
        self._known = [*prompt, *answer]
        self.kept = list(prompt)
        self.fed: list[int] = []  # tokens of each pass
        self.cache = self

    def read(self, ids: tuple[int, ...], last: int = 1) -> torch.Tensor:
        self.kept.extend(ids)
        self.fed.append(len(ids))
        logits = torch.zeros(last, 1000)
        for row in range(last):
            place = len(self.kept) - last + row + 1
            logits[row, self._known[place] if place < len(self._known) else 0] = 1.0
        return logits

    def take_back(self, tokens: int) -> None:
        del self.kept[len(self.kept) - tokens :]


def passes_for(prompt: list[int], answer: list[int]) -> int:
    """Passes after the prompt's, when the text is right and nothing but it is kept."""
    steps = KnownSteps(prompt, answer)
    first = torch.nn.functional.one_hot(torch.tensor(answer[0]), 1000)
    tokens = greedy_tokens(steps, first, prompt, len(answer))  # type: ignore[arg-type]
    found = [token for token, _ in zip(tokens, range(len(answer)), strict=False)]
    assert found == answer
    assert steps.kept == [*prompt, *answer][: len(steps.kept)]
    return len(steps.fed)


def test_a_copied_answer_takes_a_fifth_of_the_passes() -> None:
    prompt = list(range(100, 200))
    # The second token of the answer ends a run of two that was seen; drafts of 4, 7, 10, 10 and so on come true.
    assert passes_for(prompt, prompt[20:80]) <= 60 / 5
    assert passes_for(prompt, list(range(300, 360))) >= 59  # nothing to copy from
    # Copied pieces with something else between them: drafts go wrong, the text does not.
    pieces = [*prompt[10:20], 1, *prompt[50:60], 2, *prompt[12:22], 3, *prompt[70:76]]
    assert passes_for(prompt, pieces) < len(pieces) * 2 / 3


def test_a_draft_is_what_followed_the_same_tokens_last() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 9, 2, 3])
    assert lookup.draft(3) == (4, 5, 9)
    assert lookup.draft(0) == ()
    lookup.push(7)
    assert lookup.draft(3) == ()
    for token in (1, 2, 3):
        lookup.push(token)
    assert lookup.draft(2) == (4, 5)


def test_drafts_grow_when_right_and_shrink_when_wrong() -> None:
    lookup = Lookup([*range(40), 0, 1])
    lengths = [len(lookup.draft(99))]
    for accepted in (4, 7, 10):
        lookup.learn(accepted, accepted)
        lengths.append(len(lookup.draft(99)))
    lookup.learn(10, 0)
    lengths.append(len(lookup.draft(99)))
    assert lengths == [4, 7, 10, 10, 0]  # two tokens are no longer enough
    lookup.push(2)
    assert len(lookup.draft(99)) == 2


def test_parts_used_longest_ago_go_first() -> None:
    kept = Kept(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    parts = KeptParts(2 * kept.bytes)
    for name in ("a", "b"):
        parts.put((name, None, ()), kept)
    parts.get(("a", None, ()))
    parts.put(("c", None, ()), kept)
    assert [(name, None, ()) in parts for name in "abc"] == [True, False, True]
    assert parts.bytes == 2 * kept.bytes
    KeptParts(1).put(("a", None, ()), kept)


def test_the_cache_grows_and_gives_back(small: BaseModel) -> None:
    cache = StepCache(small.model.config, 2)
    part = torch.arange(2 * 2 * 3 * 8, dtype=torch.float32).reshape(2, 2, 3, 8)
    cache.join(Kept(part, part + 1))
    cache.join(Kept(part, part + 1))
    cache.take_back(2)
    assert cache.length == 4
    whole = cache.copy(0, 4)
    assert torch.equal(whole.keys, torch.cat((part, part[:, :, :1]), dim=2))
    assert torch.equal(whole.values, whole.keys + 1)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_real_weights_say_the_same_with_every_shortcut(weights_cache: Path, apart: bool) -> None:
    """Int8 as served: drafts, the kept beginning and joined passages, against one token a pass and nothing kept."""
    base = load_base_model("bundled", cache=weights_cache, quantisation="int8", device="cpu")
    floats = load_base_model("bundled", cache=weights_cache, quantisation="none", device="cpu")
    generator = TorchGenerator(base, passage_bytes=2**27, apart=apart)
    manual = (Path(__file__).parents[1] / "corpora" / "manual" / "configuration.md").read_text().split()
    sources = [Source("Configuration", " ".join(manual[start : start + 60])) for start in range(0, 300, 60)]
    for turn, question in enumerate(("What does the setting threads do?", "Which setting names the embedder?")):
        prompt = build_prompt(base.tokenizer, question, sources[turn : turn + 3], limit=900)
        fast = list(generator.generate(prompt, max_tokens=24))
        fresh = TorchGenerator(base, passage_bytes=2**27, apart=apart)
        fresh._drafts = False
        assert said(fast) == said(list(fresh.generate(prompt, max_tokens=24)))
        # In float32: the library's int8 is as far from that (0.42) as the shortcuts are from it.
        _, expected = plain_ids(floats, prompt, 1, apart=apart)
        steps = Steps(base, len(prompt.ids))
        found = generator._reader.read(steps, prompt, None, lambda: False)
        assert int(found.argmax()) == int(expected.argmax())
        assert (found.log_softmax(-1) - expected.log_softmax(-1))[expected.topk(10).indices].abs().max() < 0.5


def test_tokens_read_together_have_the_logits_of_one_by_one_bit_for_bit(tmp_path: Path) -> None:
    """With int8 weights and an adapter on a CPU; but for the head, whose own sums nothing rounds afterwards."""
    folder = save_small_model(tmp_path / "model", window=1024)
    base = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
    generator = TorchGenerator(base, {"a": save_adapter(tmp_path / "a", base, seed=1)})
    prompt = next(prompts(base.tokenizer, 1))
    draft = (40, 50, 60, 70, 80, 90)
    with generator._attached.selected("a"):
        caches = []
        for parts in ([draft], [(token,) for token in draft]):
            steps = Steps(base, len(prompt.ids) + len(draft))
            steps.read_prompt(prompt.ids, lambda: False)
            for part in parts:
                steps.read(part, len(part))
            caches.append(steps.cache.copy(0, steps.cache.length))
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert torch.equal(caches[0].values, caches[1].values)
