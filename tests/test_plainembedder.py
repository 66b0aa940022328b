"""Which folders are run without the library, and that their vectors are the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.embedding import SentenceTransformerEmbedder
from indexer.plainembedder import Form, usual_form
from indexer.weights import Weights

OLD = "sentence_transformers.models."
TEXTS = ["the tides", "iron melts at a high temperature in a furnace", "a", "bread rises " * 40]


def write(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """The settings of an embedder of the usual form, with some files changed; None takes a file away."""
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{OLD}Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{OLD}Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{OLD}Normalize"},
        ],
        "config.json": {"model_type": "bert"},
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    }
    for name, value in (files | (changes or {})).items():
        if value is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Form("mean", 256)),
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, Form("cls", 256)),
        ({"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": True}}, Form("mean", 256)),
        ({"1_Pooling/config.json": {"pooling_mode": ["cls"]}}, Form("cls", 256)),
        ({"sentence_bert_config.json": {"transformer_task": "feature-extraction"}}, Form("mean", None)),
        ({"config_sentence_transformers.json": {"prompts": {"query": ""}}}, Form("mean", 256)),
    ],
)
def test_the_usual_form_is_read_from_old_and_new_folders(
    changes: dict[str, Any], expected: Form, tmp_path: Path
) -> None:
    assert usual_form(write(tmp_path, changes)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"modules.json": None},
        {"modules.json": "{"},
        {"modules.json": []},
        {"modules.json": [{"path": "", "type": f"{OLD}Transformer"}, {"path": "2", "type": f"{OLD}Dense"}]},
        {"modules.json": [{"path": "0", "type": f"{OLD}Transformer"}, {"path": "1_Pooling", "type": f"{OLD}Pooling"}]},
        {"config.json": {"model_type": "t5"}},
        {"config.json": {"auto_map": {"AutoModel": "evil.M"}, "model_type": "evil"}},
        {"config_sentence_transformers.json": {"prompts": {"query": "query: "}}},
        {"sentence_bert_config.json": None},
        {"sentence_bert_config.json": {"do_lower_case": True}},
        {"sentence_bert_config.json": {"model_args": {"attn_implementation": "eager"}}},
        {"1_Pooling/config.json": {"pooling_mode_max_tokens": True}},
        {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
        {"1_Pooling/config.json": {}},
        {"1_Pooling/config.json": [1]},
    ],
)
def test_any_other_form_is_left_to_the_library(changes: dict[str, Any], tmp_path: Path) -> None:
    assert usual_form(write(tmp_path, changes)) is None


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_vectors_are_those_of_the_library(
    pooling: str, dtype: torch.dtype, embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small random encoder with the bundled tokenizer, in both poolings and precisions that are published."""
    import shutil

    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel

    monkeypatch.setattr("indexer.embedding.can_be_int8", lambda folder: False)
    torch.manual_seed(4)
    folder = tmp_path / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=30522, initializer_range=0.3, **sizes)).to(dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(embedder / name, folder / name)
    write(
        folder,
        {
            "config.json": (folder / "config.json").read_text(),
            "1_Pooling/config.json": {"embedding_dimension": 32, "pooling_mode": pooling},
        },
    )
    assert usual_form(folder) == Form(pooling, 256)  # type: ignore[arg-type]
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = [library.encode([text], normalize_embeddings=True, show_progress_bar=False)[0] for text in TEXTS]
    plain = SentenceTransformerEmbedder(Weights("plain", folder, "a" * 64))
    assert (plain.dimension, plain.window) == (32, library.max_seq_length)
    for text, vector in zip(TEXTS, expected, strict=True):
        if dtype is torch.float32:
            assert np.array_equal(plain.embed_question(text), vector)
        else:
            assert np.abs(plain.embed_question(text) - vector.astype(np.float32)).max() < 0.01
