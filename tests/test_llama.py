"""The compiled pass of a Llama against the library's in float32, and its loops against NumPy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from small_models import save_small_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import indexer.int8
from indexer.compiled import exponentials
from indexer.errors import TandemError
from indexer.int8 import to_int8_rows
from indexer.rounding import Product, Rounded
from tuner.attach import AttachedAdapters
from tuner.basemodel import BaseModel, load_base_model
from tuner.crew import Crew, crew_of
from tuner.decoding import Steps
from tuner.int8 import Int8Head, Int8Linear, to_int8
from tuner.kernels import attend, few_rows, meet, silu_times
from tuner.llama import Llama
from tuner.llamacuts import blocks, cuts, passes
from tuner.llamafiles import LlamaParts, read_llama
from tuner.llamaprompt import Adapted, round_normed, update
from tuner.packed import _tensors
from tuner.quiet import quiet

IDS = [5, 6, 7, 8, 9, 40, 41, 42, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 30, 31, 33, 36, 39, 44]

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | options))).eval()


def both(threads: int = 1, **options: Any) -> tuple[LlamaForCausalLM, Llama]:
    """A model in float32 with the weights that int8 can tell, and the compiled pass of its int8 copy."""
    copy, floats = llama(**options), llama(**options)
    to_int8(copy)
    widen(floats, copy)
    return floats, compiled_of(llama(**options), threads)


def compiled_of(model: Any, threads: int) -> Llama:
    """The compiled pass of a model, from its files."""
    parts = parts_of(model)
    assert parts is not None
    return Llama(parts, threads)


def parts_of(model: Any) -> LlamaParts | None:
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.save_pretrained(folder, max_shard_size="200KB")
        return read_llama(Path(folder), Path(folder) / "int8.safetensors")


@torch.no_grad()
def widen(floats: Any, copy: Any) -> None:
    """Give `floats` the values of the int8 layers of `copy`, but for a head that is the embedding."""
    for (_, layer), (_, rounded) in zip(floats.named_modules(), copy.named_modules(), strict=True):
        if isinstance(rounded, Int8Linear) and not isinstance(rounded, Int8Head):
            layer.weight.copy_(rounded.values.float() * rounded.scales[:, None])


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of logits, in standard deviations of the expected ones. Another token in one place makes more than 1."""
    return float((found - expected).abs().max() / expected.std())


@torch.inference_mode()
def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("parts", [(25,), (20, 5), (3, 22), (1,) * 25, (16, 1, 8)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_those_of_the_library_in_floats(threads: int, parts: tuple[int, ...], tied: bool) -> None:
    floats, compiled = both(threads, tie_word_embeddings=tied)
    cache, found, start = compiled.cache(4), [], 0
    for size in parts:
        found.append(compiled.read(cache, IDS[start : start + size], size))
        start += size
    assert cache.length == 25
    # Many tokens are rounded as well; the logits of a head that is the embedding are int8's, but for the largest.
    most = 0.25 if max(parts) > 16 else 0.05 if tied else 1e-4
    assert distance(torch.cat(found), logits_of(floats, IDS)) < most
    assert distance(logits_of(floats, IDS[1:]), logits_of(floats, IDS)[1:]) > 1, "otherwise this shows nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"rope_theta": 100.0},
        {"num_key_value_heads": 6},
        {"head_dim": 32},
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
        {"rope_parameters": LLAMA_3},
    ],
)
def test_shapes_and_rotations_come_from_the_configuration(options: dict[str, Any]) -> None:
    floats, compiled = both(2, **options)
    cache = compiled.cache(30)
    found = torch.cat([compiled.read(cache, [token]) for token in IDS])
    assert distance(found, logits_of(floats, IDS)) < 0.05
    assert distance(compiled.read(compiled.cache(9), IDS, 25), found) < 0.5


def test_few_tokens_are_closer_than_many() -> None:
    """They are multiplied as floats: only the weights are rounded."""
    floats, compiled = both()
    expected, one = logits_of(floats, IDS), compiled.cache(30)
    few = torch.cat([compiled.read(one, [token]) for token in IDS])
    many = compiled.read(compiled.cache(30), IDS, 25)
    assert distance(few, expected) < 0.1 * distance(many, expected)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
def test_an_adapter_adds_what_peft_adds(tmp_path: Path, targets: Any) -> None:
    copy = llama()
    to_int8(copy)
    compiled = compiled_of(llama(), 2)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    floats = llama()
    widen(floats, copy)
    with quiet():
        oracle: Any = get_peft_model(floats, config).eval()
        attached: Any = get_peft_model(copy, config).eval()
    for one, other in zip(oracle.named_parameters(), attached.named_parameters(), strict=True):
        if "lora_" in one[0]:
            assert one[0] == other[0]
            other[1].data = one[1].data.clone()
    assert compiled.attach("default", attached)
    with oracle.disable_adapter():
        plain = logits_of(oracle, IDS)
    expected = logits_of(oracle, IDS)
    assert distance(plain, expected) > 0.5, "otherwise this shows nothing"
    for key, wanted in (("default", expected), (None, plain), ("default", expected)):
        compiled.use(key)
        cache = compiled.cache(30)
        assert distance(torch.cat([compiled.read(cache, [token]) for token in IDS]), wanted) < 0.1
        assert distance(compiled.read(compiled.cache(30), IDS, 25), wanted) < 0.5


def files_of(model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What PEFT would save of the adapter."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["k_proj", "down_proj"], "bias": "none"}
    torch.manual_seed(7)
    with quiet():
        peft_model = get_peft_model(model, LoraConfig(**settings, init_lora_weights=False, task_type="CAUSAL_LM"))
        return settings, get_peft_model_state_dict(peft_model)


@pytest.mark.parametrize("rs", [False, True])
def test_plain_files_are_read_as_peft_reads_them(rs: bool) -> None:
    floats, compiled = both()
    settings, tensors = files_of(llama())
    assert compiled.take("a", settings | {"use_rslora": rs}, tensors)
    with quiet():
        oracle = get_peft_model(floats, LoraConfig(**settings, use_rslora=rs, task_type="CAUSAL_LM")).eval()
        set_peft_model_state_dict(oracle, tensors)
    compiled.use("a")
    cache = compiled.cache(30)
    found = torch.cat([compiled.read(cache, [token]) for token in IDS])
    assert distance(found, logits_of(oracle, IDS)) < 0.1
    with oracle.disable_adapter():
        assert distance(found, logits_of(oracle, IDS)) > 0.5, "otherwise this shows nothing"


@pytest.mark.parametrize("change", ["setting", "missing", "more", "shape", "layers", "pattern"])
def test_files_of_anything_else_are_left_to_peft(change: str) -> None:
    _, compiled = both()
    settings, tensors = files_of(llama())
    path = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"
    if change == "setting":
        settings["layers_to_transform"] = [0]
    elif change == "missing":
        del tensors[path]
    elif change == "more":
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(4, 96)
    elif change == "shape":
        tensors[path] = torch.ones(5, 96)
    elif change == "layers":
        tensors = {name: value for name, value in tensors.items() if ".layers.2." not in name}
    else:
        settings["target_modules"] = "all-linear"
    assert not compiled.take("a", settings, tensors)


def test_processors_without_int8_products_multiply_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    _, compiled = both(2)
    expected = compiled.read(compiled.cache(30), IDS, 25)
    monkeypatch.setattr(indexer.int8, "HAS_INT8_PRODUCTS", False)
    torch.testing.assert_close(compiled.read(compiled.cache(30), IDS, 25), expected, rtol=0, atol=1e-5)


def test_an_adapter_on_other_layers_is_not_taken(tmp_path: Path) -> None:
    copy = llama(tie_word_embeddings=False)
    to_int8(copy)
    compiled = compiled_of(llama(tie_word_embeddings=False), 1)
    with quiet():
        attached = get_peft_model(copy, LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    assert not compiled.attach("default", attached)


def test_only_plain_llamas_have_a_compiled_pass() -> None:
    """Biases, other activations and other families are left to the library."""
    assert parts_of(llama())
    assert parts_of(llama(attention_bias=True)) is None
    assert parts_of(llama(hidden_act="gelu")) is None
    assert parts_of(llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})) is None
    assert parts_of(GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2))) is None


def test_files_that_are_not_as_the_model_is_built_are_left_to_the_library(tmp_path: Path) -> None:
    """Names of an older version, say; a tensor of another shape is a mistake, and told."""
    folder = save_small_model(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors | {"model.final.weight": norm}, file, {"format": "pt"})
    assert read_llama(folder, tmp_path / "int8.safetensors") is None
    save_file(tensors | {"model.norm.weight": norm[:5].clone()}, file, {"format": "pt"})
    with pytest.raises(TandemError, match=r"model\.norm\.weight has the shape"):
        load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")


def test_answering_needs_nothing_of_the_library_s_model(tmp_path: Path) -> None:
    """It takes seconds to import; only an adapter that is not plain LoRA asks for it."""
    folder = save_small_model(tmp_path / "model")
    script = f"""
import sys
from pathlib import Path
from tuner.basemodel import load_base_model
from tuner.generation import TorchGenerator
from tuner.prompt import Prompt
base = load_base_model({str(folder)!r}, cache=Path({str(tmp_path)!r}), device="cpu", quantisation="int8")
prompt = Prompt((5, 6, 7, 8) * 9, (), 0)
assert list(TorchGenerator(base, at_once=2).generate(prompt, max_tokens=4))
heavy = [name for name in sys.modules if name.startswith(("transformers.models.llama.modeling", "peft", "accelerate"))]
assert not heavy, heavy
assert base.model.config.model_type == "llama"
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


def test_requests_of_different_lengths_share_a_pass(tmp_path: Path) -> None:
    """Each has the bits that it has alone."""
    _, compiled = both(2)
    alone, beside = [[compiled.cache(40) for _ in range(3)] for _ in range(2)]
    begun, then = (IDS[:20], IDS[3:21], IDS[5:7]), (IDS[:1], IDS[4:7], IDS[9:11])
    for caches in (alone, beside):
        for cache, ids in zip(caches, begun, strict=True):
            compiled.read(cache, ids)
    expected = [compiled.read(cache, ids, len(ids)) for cache, ids in zip(alone, then, strict=True)]
    found = compiled.read_together(list(zip(beside, then, strict=True)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [cache.length for cache in beside] == [21, 21, 4]


def test_a_cache_takes_back_copies_and_joins() -> None:
    _, compiled = both()
    cache = compiled.cache(2)
    compiled.read(cache, IDS[:20])
    expected = compiled.read(cache, IDS[20:22], 2)
    cache.take_back(2)
    other = compiled.cache(1)
    other.join(cache.copy(0, 20))
    assert torch.equal(compiled.read(cache, IDS[20:22], 2), expected)
    assert torch.equal(compiled.read(other, IDS[20:22], 2), expected)


def test_a_loaded_model_answers_through_it(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    base: BaseModel = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
    plain: BaseModel = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="none")
    assert base.compiled is not None
    assert plain.compiled is None
    AttachedAdapters(base)
    widen(plain.model, base.model)
    one, other = Steps(base, 30), Steps(plain, 30)
    assert distance(torch.cat([one.read([token]) for token in IDS]), other.read(IDS, 25)) < 0.1


@pytest.mark.parametrize("size", [1, 7, 700])
def test_the_loops_are_numpys(size: int) -> None:
    rng = np.random.default_rng(size)
    bits = np.empty(max(size, 64), np.int32)
    x = (rng.normal(size=size) * 20).astype(np.float32)
    found = x.copy()
    total = exponentials(found, size, x.max(), bits)
    expected = np.exp(x.astype(np.float64) - x.max())
    np.testing.assert_allclose(found, np.maximum(expected, np.exp(-87.4)), rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
    gate, up, out = x * 10, rng.normal(size=size).astype(np.float32), np.empty(size, np.float32)
    silu_times(gate, up, out, bits)
    wide = gate.astype(np.float64)
    np.testing.assert_allclose(out, wide / (1 + np.exp(-np.maximum(wide, -80))) * up, rtol=1e-5, atol=1e-30)
    query, seen = rng.normal(size=64).astype(np.float32), np.empty(64, np.float32)
    keys, values = (rng.normal(size=(size + 3, 64)).astype(np.float32) for _ in range(2))
    attend(query, keys, values, size, np.empty(size, np.float32), bits, seen)
    scores = keys[:size].astype(np.float64) @ query / 8
    shares = np.exp(scores - scores.max())
    np.testing.assert_allclose(seen, shares @ values[:size] / shares.sum(), rtol=2e-5, atol=2e-6)


def test_rounding_loses_less_than_half_a_step() -> None:
    """And with the rest, a five hundredth of one."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(5, 48)) * rng.uniform(0.1, 50, size=(5, 1)) + 3).astype(np.float32)
    x[4] = 2.5  # a row of one value has no range
    floats, grids = np.empty_like(x), np.empty((5, 2), np.float32)
    coarse, rest = np.empty(x.shape, np.int8), np.empty(x.shape, np.int8)
    rounded = Rounded(floats, coarse, rest, grids)
    round_normed(x, np.ones(48, np.float32), np.float32(0), rounded, True)
    np.testing.assert_allclose(floats, x / np.sqrt((x**2).mean(axis=1, keepdims=True)), rtol=1e-5)
    step, middle = grids[:, :1], grids[:, 1:]
    assert np.abs(middle + step * coarse - floats).max() <= step.max() * 0.501
    assert (np.abs(middle + step * (coarse + rest / 253) - floats) <= step * 0.0025 + 1e-6).all()
    weights = rng.integers(-127, 128, size=(7, 48)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, size=7).astype(np.float32)
    whole, fine = (part.astype(np.int32) @ weights.T.astype(np.int32) for part in (coarse, rest))
    start = rng.normal(size=(5, 7)).astype(np.float32)
    sums, out = weights.sum(axis=1).astype(np.float32), start.copy()
    product = Product(whole, fine, grids, sums, scales)
    nothing = np.empty((0, 0), np.float32)
    update(out, product, Adapted(nothing, nothing, np.zeros(1, np.int64)), np.empty((4, 7), np.float32))
    expected = floats @ (weights * scales[:, None]).T
    np.testing.assert_allclose(out - start, expected, atol=2e-2 * np.abs(expected).max() / 10)
    few = np.empty((5, 7), np.float32)
    few_rows(weights, scales, floats, few, 0, 7)
    np.testing.assert_allclose(few, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("before", "parts", "threads"), [(0, (100,), 2), (700, (17,), 3), (5, (160, 9, 170, 31), 2)])
def test_a_prompt_is_cut_into_shares_of_the_same_work(before: int, parts: tuple[int, ...], threads: int) -> None:
    edges = blocks(parts, threads)
    shares = cuts(before, edges, threads)
    assert (shares[0], shares[-1], len(shares)) == (0, sum(parts), threads + 1)
    assert set(shares) <= set(edges) and list(shares) == sorted(shares)
    sizes = [after - start for start, after in pairwise(shares)]
    assert max(sizes) <= 1.25 * min(sizes) + 16


def test_a_few_tokens_are_for_one_of_many_threads() -> None:
    assert cuts(0, blocks((2,), 4), 4) == (0, 0, 0, 2, 2)


def test_blocks_of_a_part_are_the_same_wherever_it_stands() -> None:
    parts = (41, 170, 8, 333, 1)
    edges = blocks(parts, 2)
    assert list(edges) == sorted(set(edges))
    for before, part in zip((0, *accumulate(parts)), parts, strict=False):
        assert [edge - before for edge in edges if before <= edge <= before + part] == list(blocks((part,), 2))
    assert max(after - start for start, after in pairwise(edges)) <= 32


def test_passes_have_whole_parts_and_about_the_same_size() -> None:
    assert passes((40, 170, 170, 170, 170, 30), 384) == [(40, 170, 170), (170, 170, 30)]
    assert passes((12, 100), 384) == [(12, 100)]
    # A long part is cut alike wherever it stands.
    assert [piece for each in passes((1000,), 384) for piece in each] == [384, 384, 232]
    assert [piece for each in passes((50, 1000, 20), 384) for piece in each] == [50, 384, 384, 232, 20]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parts_are_read_together_as_they_are_one_by_one(threads: int) -> None:
    compiled = compiled_of(llama(max_position_embeddings=256), threads)
    ids, parts = [number % 97 + 3 for number in range(171)], (9, 70, 4, 57, 31)
    alone, once, twice = (compiled.cache(len(ids)) for _ in range(3))
    start = 0
    for part in parts:
        last = compiled.read(alone, ids[start : start + part], parts=(part,))
        start += part
    assert torch.equal(compiled.read(once, ids, parts=parts), last)
    assert torch.equal(once.copy(0, 171).keys, alone.copy(0, 171).keys)
    compiled.read(twice, ids[:79], parts=parts[:2])
    assert torch.equal(compiled.read(twice, ids[79:], parts=parts[2:]), last)


def test_the_crew_shares_work_and_hands_errors_on() -> None:
    crew = Crew(3)
    found: list[int] = []
    crew.do(found.append)
    assert sorted(found) == [0, 1, 2]

    def fail(number: int) -> None:
        if number == 1:
            raise ValueError("one of three")

    with pytest.raises(ValueError, match="one of three"):
        crew.do(fail)
    crew.do(found.append)
    assert len(found) == 6
    assert crew_of(2) is crew_of(2)


def test_an_interrupted_piece_of_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its reports would be taken for those of the next piece, which would seem done before it is."""
    crew, found = Crew(2), list[int]()
    reports = crew._done

    class Interrupted:
        calls = 0

        def get(self) -> BaseException | None:
            self.calls += 1
            if self.calls == 1:
                raise KeyboardInterrupt
            return reports.get()

    monkeypatch.setattr(crew, "_done", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        crew.do(found.append)
    assert sorted(found) == [0, 1]
    assert reports.empty()


def test_the_crew_has_one_thread_of_pytorch_each_and_others_have_theirs() -> None:
    usual, counts = torch.get_num_threads(), list[int]()
    Crew(2).do(lambda number: counts.append(torch.get_num_threads()))
    assert counts == [1, 1]
    assert torch.get_num_threads() == usual
    new = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert counts[-1] == usual


def test_threads_meet_as_often_as_they_are_told() -> None:
    crew, order = Crew(3), list[tuple[int, int]]()

    def work(number: int) -> None:
        for turn in range(50):
            order.append((turn, number))
            meet(crew.counters, 3)

    crew.do(work)
    assert [turn for turn, _ in order] == [turn for turn in range(50) for _ in range(3)]


def test_a_share_that_fails_lets_the_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    _, compiled = both(3)
    before = compiled.read(compiled.cache(30), IDS)
    read_rows = compiled._read_rows

    def failing(number: int, prompt: Any) -> None:
        if number == 0:
            raise MemoryError("no room")
        read_rows(number, prompt)

    monkeypatch.setattr(compiled, "_read_rows", failing)
    with pytest.raises(MemoryError, match="no room"):
        compiled.read(compiled.cache(30), IDS)
    monkeypatch.undo()
    assert torch.equal(compiled.read(compiled.cache(30), IDS), before)


def test_int8_weights_are_kept_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, kept = tmp_path / "model", tmp_path / "int8" / "kept.safetensors"
    with quiet():
        llama().save_pretrained(folder)
    made = read_llama(folder, kept)
    assert made is not None and kept.is_file()
    rounded = []
    monkeypatch.setattr("tuner.llamafiles.to_int8_rows", lambda weight: rounded.append(weight) or to_int8_rows(weight))
    for again in (read_llama(folder, kept), read_llama(folder, kept)):
        assert again is not None and not rounded
        for name, tensor in _tensors(made.int8).items():
            assert torch.equal(_tensors(again.int8)[name], tensor), name
    # One that was cut off, and a disk without room, cost time and nothing else.
    kept.write_bytes(kept.read_bytes()[:-100])
    whole = read_llama(folder, kept)
    assert whole is not None and rounded and "is made anew" in caplog.text
    assert np.array_equal(whole.int8.words, made.int8.words)
    kept.unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert read_llama(folder, kept) is not None and not kept.exists()
