import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.batches import batches
from indexer.embedding import SentenceTransformerEmbedder
from indexer.errors import TandemError
from indexer.weights import Weights, embedder_weights

TEXTS = [" ".join(f"word{n % 7} number {n}" for n in range(length)) for length in (1, 3, 90, 2, 40, 17, 60)]

# The cosine of vectors of one text: int8 does not tell them to the last digits (indexer/int8embedder.py).
LIKE = 0.995


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2000))
def test_batches_hold_every_text_once_and_keep_to_the_budget(lengths: list[int], most: int) -> None:
    made = list(batches(lengths, most))
    assert sorted(place for batch in made for place in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or max(lengths[place] for place in batch) * len(batch) <= most
    longest = [lengths[batch[0]] for batch in made]
    assert longest == sorted(longest, reverse=True)


def test_the_identity_needs_no_model_and_names_every_file_that_counts(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "2_Dense").mkdir(parents=True)
    for name in ("config.json", "modules.json", "tokenizer.json", "2_Dense/config.json", "2_Dense/model.safetensors"):
        (folder / name).write_text(name)
    (folder / "README.md").write_text("x")

    def identity(name: str = "model") -> str:
        return SentenceTransformerEmbedder(Weights(name, folder, "a" * 64)).identity

    first = identity()
    assert identity(str(folder)) == first, "where it lies does not matter"
    (folder / "README.md").write_text("y")
    assert identity() == first
    seen = {first}
    for name in ("modules.json", "tokenizer.json", "2_Dense/model.safetensors"):
        (folder / name).write_text("changed")
        seen.add(identity())
    assert len(seen) == 4
    assert SentenceTransformerEmbedder(Weights("model", folder, "b" * 64)).identity not in seen
    with pytest.raises(TandemError, match="does not load"):
        SentenceTransformerEmbedder(Weights("model", folder, "a" * 64)).embed_question("text")


@pytest.fixture(scope="module")
def bundled(weights_cache: Path) -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(embedder_weights("bundled", weights_cache))


@pytest.mark.slow
def test_the_vectors_are_those_of_the_library(bundled: SentenceTransformerEmbedder, embedder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(embedder), device="cpu", local_files_only=True)
    expected = model.encode_document(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    found = bundled.embed_documents(TEXTS)
    assert found.dtype == np.float32
    assert ((found * expected).sum(axis=1) > LIKE).all()
    assert bundled.embed_question(TEXTS[3]) @ expected[3] > LIKE
    assert bundled.embed_documents([]).shape == (0, 384)
    counts = [len(ids) for ids in model.tokenizer(TEXTS, truncation=False, verbose=False)["input_ids"]]
    assert bundled.count_tokens(TEXTS) == counts
    assert max(counts) > bundled.window, "one of them is cut, as the library cuts it"
    assert len(bundled.token_starts(TEXTS[2])) == counts[2] - 2


@pytest.mark.slow
def test_a_model_with_prefixes_is_left_to_the_library(embedder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedder, tmp_path / "model"))
    settings = folder / "config_sentence_transformers.json"
    settings.write_text('{"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": null}')
    prefixed = SentenceTransformerEmbedder(Weights("prefixed", folder, "a" * 64))
    plain = SentenceTransformerEmbedder(Weights("plain", embedder, "a" * 64))
    assert prefixed.embed_question("tides") @ plain.embed_question("query: tides") > LIKE
    assert prefixed.embed_documents(["tides"])[0] @ plain.embed_documents(["passage: tides"])[0] > LIKE
    assert prefixed.embed_question("tides") @ plain.embed_question("tides") < 0.95
    assert prefixed.identity.split(":")[2] != plain.identity.split(":")[2]


@pytest.mark.slow
def test_threads_share_an_embedder(bundled: SentenceTransformerEmbedder) -> None:
    """A question is embedded while documents are split and embedded; the library's tokenizer would refuse."""
    expected = bundled.embed_documents(TEXTS)
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(5):
                bundled.token_starts(TEXTS[2])
                if not np.allclose(bundled.embed_documents(TEXTS), expected, atol=1e-5):
                    wrong.append("another vector")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_asking_for_the_identity_imports_no_model_library() -> None:
    script = """
import sys
from pathlib import Path
from indexer.embedding import SentenceTransformerEmbedder
from indexer.weights import Weights
SentenceTransformerEmbedder(Weights("m", Path("."), "a" * 64)).identity
assert not {"torch", "transformers", "tokenizers", "sentence_transformers"} & set(sys.modules)
"""
    import subprocess

    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{script}"],
        check=True,
        cwd=root / "tests",
    )
