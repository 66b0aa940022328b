"""The pipeline of the tutorials behind HTTP: recursive splitter, HuggingFaceEmbeddings, FAISS, text-generation.

    python tests/benchmarks/peers/tutorial_server.py --documents docs.jsonl --embedder DIR --model DIR --k 4 --port 8001

`docs.jsonl` has an object with "text" a line. A question is embedded and searched for, which is timed; then the given
prompt is read in place of one from its own passages, so that every peer reads the same text.
"""

import argparse
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from completions import serve
from langchain_community.vectorstores import FAISS
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from transformers import TextIteratorStreamer, pipeline

# The splitter's sizes in LangChain's own tutorial on retrieval.
CHUNK_SIZE, CHUNK_OVERLAP = 1000, 200


class Tutorial:
    def __init__(self, documents: Path, embedder: str, model: str, k: int) -> None:
        texts = [json.loads(line)["text"] for line in documents.read_text("utf-8").splitlines()]
        splitter = RecursiveCharacterTextSplitter(chunk_size=CHUNK_SIZE, chunk_overlap=CHUNK_OVERLAP)
        embeddings = HuggingFaceEmbeddings(model_name=embedder, model_kwargs={"device": "cpu"})
        self._store = FAISS.from_documents(splitter.create_documents(texts), embeddings)
        self._k = k
        self._pipeline: Any = pipeline("text-generation", model=model, dtype="float32", device="cpu")

    def count(self, prompt: str) -> int:
        return len(self._pipeline.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def stream(self, question: str, prompt: str, max_tokens: int) -> Iterator[str]:
        self._store.similarity_search(question, k=self._k)
        streamer = TextIteratorStreamer(
            self._pipeline.tokenizer, skip_prompt=True, timeout=600, skip_special_tokens=True
        )
        options = {"max_new_tokens": max_tokens, "do_sample": False, "return_full_text": False, "streamer": streamer}
        thread = threading.Thread(target=self._pipeline, args=(prompt,), kwargs=options)
        thread.start()
        yield from filter(None, streamer)
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    serve(Tutorial(options.documents, options.embedder, options.model, options.k), options.port)


if __name__ == "__main__":
    main()
