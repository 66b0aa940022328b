import json
from pathlib import Path

import numpy as np
import pytest
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.rerank import CrossEncoderReranker
from indexer.retrieval import RERANK_DEPTH, Retriever
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import named_weights

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "iron", "melts", "moon", "tides", "bread"]


def save_cross_encoder(folder: Path, outputs: int = 1) -> Path:
    """A BERT with random weights and a vocabulary of a few words, as sentence-transformers would load it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=outputs,
        max_position_embeddings=32,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_scores_are_those_of_the_model_and_order_does_not_matter(tmp_path: Path) -> None:
    import torch
    from transformers import BertForSequenceClassification, BertTokenizerFast

    folder = save_cross_encoder(tmp_path / "model")
    reranker = CrossEncoderReranker(named_weights(str(folder), tmp_path))
    texts = ["iron melts", "moon tides", "bread", "iron " * 100, ""]
    scores = reranker.score("iron", texts)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    for text, score in zip(texts, scores, strict=True):
        inputs = tokenizer("iron", text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            expected = torch.sigmoid(model(**inputs).logits[0, 0]).item()
        assert score == pytest.approx(expected, abs=1e-5)
    assert len(set(scores.round(4).tolist())) > 3, "a model that cannot tell texts apart would pass any test of order"
    assert np.allclose(reranker.score("iron", texts[::-1]), scores[::-1], atol=1e-6)
    assert reranker.score("iron", []).shape == (0,)


def test_a_model_with_several_outputs_is_refused(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "model", outputs=3)
    with pytest.raises(TandemError, match="3 outputs"):
        CrossEncoderReranker(named_weights(str(folder), tmp_path))


def test_a_folder_that_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    with pytest.raises(TandemError, match="does not load"):
        CrossEncoderReranker(named_weights(str(folder), tmp_path))


class ByNumber:
    """Likes the passage with the largest number in it."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def score(self, question: str, texts):  # type: ignore[no-untyped-def]
        self.read = list(texts)
        return np.asarray([float(text.split()[-1]) / 100 for text in texts], np.float32)


def test_the_reranker_orders_the_candidates_and_no_others(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(40):
        (corpus / f"{number:02}.txt").write_text(f"{'moon ' * (number < 25)}and tides, in short {number}")
    store = Store(tmp_path / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(40, 8))
    reranker = ByNumber()
    passages = Retriever(store, HashingEmbedder(), reranker=reranker).retrieve("moon", 3).passages
    assert len(reranker.read) == RERANK_DEPTH
    numbers = sorted((int(text.split()[-1]) for text in reranker.read), reverse=True)
    assert max(numbers) < 25, "the candidates are those the channels found"
    assert [int(passage.chunk.text.split()[-1]) for passage in passages] == numbers[:3]
    assert [passage.score for passage in passages] == pytest.approx([number / 100 for number in numbers[:3]])
    assert [passage.rank for passage in passages] == [1, 2, 3]
