"""Embedders in int8: their loops against NumPy, the encoder against the library's in float32."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import indexer.int8
from indexer.bert import Bert, fits
from indexer.bertloops import add_product, gelu_rows, norm_rows, widen_rows
from indexer.embedding import SentenceTransformerEmbedder
from indexer.errors import TandemError
from indexer.int8 import multiply, to_int8_rows
from indexer.int8embedder import Int8Embedder, can_be_int8
from indexer.rounding import Product, Rounded, round_row
from indexer.weights import Weights

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
TEXTS = ["the tides", "iron melts at a high temperature in a furnace", "a", "bread rises " * 40, "Ünï 中文 \x00", ""]
IDS = [[2, 5, 6, 7, 3], [2, 3], list(range(4, 40)), [2, 250, 9, 3]]

needs_int8 = pytest.mark.skipif(
    not indexer.int8.HAS_INT8_PRODUCTS, reason="no instructions for int8 here: the embedder stays in float32"
)


def rows_of(floats: Any) -> Rounded:
    m, n = floats.shape
    return Rounded(
        floats.astype(np.float32).copy(),
        np.zeros((m, n), np.int8),
        np.zeros((m, n), np.int8),
        np.zeros((m, 2), np.float32),
    )


def back(rounded: Rounded) -> Any:
    """What the rounded values stand for."""
    return rounded.coarse * rounded.grids[:, :1] + rounded.grids[:, 1:]


@pytest.fixture
def product() -> tuple[Product, Any]:
    """Random floats times a random int8 matrix, and what comes of it in float64."""
    random = np.random.default_rng(5)
    rounded = rows_of(random.normal(3, 20, (7, 16)))
    for token in range(7):
        round_row(rounded, token, False)
    values, scales = to_int8_rows(torch.from_numpy(random.normal(0, 1, (24, 16)).astype(np.float32)))
    sums = values.sum(dim=1, dtype=torch.float32).numpy()
    whole = multiply(torch.from_numpy(rounded.coarse), values).numpy()
    made = Product(whole, np.empty((0, 0), np.int32), rounded.grids, sums, scales.numpy())
    return made, back(rounded).astype(np.float64) @ (values.numpy() * scales.numpy()[:, None]).T


def test_a_rounded_row_is_within_half_a_step(product: tuple[Product, Any]) -> None:
    rounded = rows_of(np.random.default_rng(1).normal(-2, 9, (5, 33)))
    for token in range(5):
        round_row(rounded, token, False)
    assert (np.abs(back(rounded) - rounded.floats) <= rounded.grids[:, :1] * 0.5001).all()


def test_products_are_widened_and_added(product: tuple[Product, Any]) -> None:
    made, expected = product
    bias = np.linspace(-1, 1, 24).astype(np.float32)
    out = np.empty((7, 24), np.float32)
    widen_rows(made, bias, out)
    assert np.allclose(out, expected + bias, rtol=1e-5, atol=1e-3)
    x = np.ones((7, 24), np.float32)
    add_product(made, bias, np.empty(24, np.float32), x)
    assert np.allclose(x, expected + bias + 1, rtol=1e-5, atol=1e-3)


def test_the_norm_is_that_of_its_paper() -> None:
    x = np.random.default_rng(2).normal(4, 3, (6, 40))
    weight, bias = np.linspace(0.5, 2, 40).astype(np.float32), np.linspace(-1, 1, 40).astype(np.float32)
    rounded = rows_of(x)
    norm_rows(rounded, weight, bias, np.float32(1e-12))
    expected = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) * weight + bias
    assert np.allclose(rounded.floats, expected, atol=1e-5)
    assert np.abs(back(rounded) - expected).max() < np.ptp(expected) / 254


def test_gelu_is_right_to_what_its_docstring_says() -> None:
    x = np.linspace(-12, 12, 24_000).reshape(10, -1)
    size = x.shape[1]
    nothing = np.zeros((10, 2), np.float32)
    nothing[:, 0] = 1
    # A product whose whole numbers are 0: what is left is the bias.
    for row in x:
        made = Product(
            np.zeros((1, size), np.int32),
            np.empty((0, 0), np.int32),
            nothing[:1],
            np.zeros(size, np.float32),
            np.ones(size, np.float32),
        )
        rounded = rows_of(np.zeros((1, size)))
        gelu_rows(made, row.astype(np.float32), rounded)
        expected = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in row])
        assert (np.abs(rounded.floats[0] - expected) <= 5e-5 * np.maximum(1, np.abs(row)) + 1e-6).all()


def write_bert(folder: Path, *, part_of_larger: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A random BERT whose matrices int8 can tell exactly, saved; what is left is the rounding of activations."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    torch.manual_seed(4)
    config = BertConfig(vocab_size=300, initializer_range=0.2, max_position_embeddings=64, **SIZES)
    larger = BertForMaskedLM(config) if part_of_larger else None
    model = larger.bert if larger is not None else BertModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ".layer." in name:
                values, scales = to_int8_rows(parameter)
                # Powers of two are told exactly in every precision.
                parameter.copy_(values.float() * torch.exp2(torch.ceil(torch.log2(scales)))[:, None])
                parameter[:, 0] = 127 * torch.exp2(torch.ceil(torch.log2(scales)))
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    (larger if larger is not None else model).to(dtype).save_pretrained(folder)
    return model.float().eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part_of_larger", [False, True])
def test_the_encoder_is_the_library_s(part_of_larger: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    model = write_bert(tmp_path, part_of_larger=part_of_larger, dtype=dtype)
    assert fits(tmp_path)
    found, starts = Bert(tmp_path)(IDS)
    assert starts == [0, 5, 7, 43, 47]
    for ids, start in zip(IDS, starts, strict=False):
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).last_hidden_state[0].numpy()
        here = found[start : start + len(ids)]
        cosines = (here * expected).sum(1) / np.linalg.norm(here, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > 0.995


def test_a_text_is_the_same_beside_others(tmp_path: Path) -> None:
    write_bert(tmp_path)
    bert = Bert(tmp_path)
    together, starts = bert(IDS)
    together = together.copy()
    for ids, start in zip(IDS, starts, strict=False):
        assert np.array_equal(bert([ids])[0], together[start : start + len(ids)])


def test_processors_without_int8_products_come_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bert(tmp_path)
    expected = Bert(tmp_path)(IDS)[0].copy()
    monkeypatch.setattr(indexer.int8, "HAS_INT8_PRODUCTS", False)
    assert np.array_equal(Bert(tmp_path)(IDS)[0], expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"num_hidden_layers": None},
    ],
)
def test_other_encoders_are_left_to_the_library(settings: dict[str, Any], tmp_path: Path) -> None:
    write_bert(tmp_path)
    path = tmp_path / "config.json"
    changed = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    assert not fits(tmp_path)


def as_embedder(folder: Path, bundled: Path, pooling: str = "mean") -> Weights:
    """The bundled tokenizer, and the settings of an embedder around the encoder in `folder`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, folder / name)
    kinds = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    return Weights("small", folder, "a" * 64)


@needs_int8
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.slow
def test_vectors_are_near_those_of_float32(
    pooling: str, embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(4)
    folder = tmp_path / "model"
    BertModel(BertConfig(vocab_size=30522, initializer_range=0.2, **SIZES)).save_pretrained(folder)
    weights = as_embedder(folder, embedder, pooling)
    int8 = SentenceTransformerEmbedder(weights)
    assert int8.precision == "int8"
    monkeypatch.setattr("indexer.embedding.can_be_int8", lambda folder: False)
    plain = SentenceTransformerEmbedder(weights)
    assert plain.precision == "float32"
    assert (int8.window, int8.dimension) == (plain.window, plain.dimension) == (40, 48)
    assert int8.identity == plain.identity
    assert int8.count_tokens(TEXTS) == plain.count_tokens(TEXTS)
    found = int8.embed_documents(TEXTS)
    assert found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert ((found * plain.embed_documents(TEXTS)).sum(axis=1) > 0.99).all()
    for text, vector in zip(TEXTS, found, strict=True):
        assert np.array_equal(int8.embed_question(text), vector)


@needs_int8
@pytest.mark.slow
def test_a_question_does_not_wait_for_documents(embedder: Path) -> None:
    int8 = SentenceTransformerEmbedder(Weights("bundled", embedder, "a" * 64))
    loaded = int8.load()._of_ids
    assert isinstance(loaded, Int8Embedder)
    go_on = threading.Event()
    held = [loaded._documents.submit(go_on.wait, 60) for _ in range(torch.get_num_threads())]
    try:
        assert int8.embed_question("tides").shape == (384,)
        assert not any(work.done() for work in held)
    finally:
        go_on.set()


@needs_int8
@pytest.mark.slow
def test_a_damaged_model_is_told(embedder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(embedder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.3.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TandemError, match=r"encoder\.layer\.3\.output\.dense\.bias"):
        SentenceTransformerEmbedder(Weights("damaged", folder, "a" * 64)).embed_question("tides")
    assert not can_be_int8(tmp_path)


@needs_int8
@pytest.mark.slow
def test_the_bundled_embedder_needs_no_transformers(weights_cache: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from indexer.embedding import SentenceTransformerEmbedder
from indexer.weights import embedder_weights
SentenceTransformerEmbedder(embedder_weights("bundled", Path({str(weights_cache.resolve())!r}))).embed_question("tides")
assert not {{"transformers", "sentence_transformers", "sklearn", "datasets", "peft", "bitsandbytes"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
