"""How fast a whole answer from documents is, side by side with the usual ways to get one, in one run.

    python tests/benchmarks/ask.py --python PEERS/bin/python --threads 2 --clients 1 4 16
    python tests/benchmarks/ask.py --python PEERS/bin/python --corpus DIR --pairs FILE --peers tandem,llama.cpp

Peers, each a process of its own on loopback, with the same weights, prompt, length limit, threads and cores:

    tandem        `tandem serve`, /ask; with its defaults, with as much memory for passages as llama.cpp's prompt
                  cache gets, and with passage_cache beside
    llama.cpp     its own server in C++ from GGUF, the program of --llama-server or what the package xllamacpp holds;
                  with and without its prompt cache
    llama-cpp-python
                  the server of that package, which answers one question at a time; likewise
    tutorial      LangChain splitter, HuggingFaceEmbeddings and FAISS, transformers text-generation in float32
    transformers  `transformers serve` in float32
    openvino      OpenVINO GenAI from the same GGUF files

They are installed into an environment of their own, given by --python; what is missing is an error that names the
command:

    python3.11 -m venv PEERS
    CMAKE_ARGS=-DGGML_NATIVE=ON PEERS/bin/pip install 'llama-cpp-python[server]'
    PEERS/bin/pip install xllamacpp
    PEERS/bin/pip install 'torch~=2.13.0' 'transformers[serving]>=5.23,<6' langchain-community langchain-huggingface \
        langchain-text-splitters sentence-transformers faiss-cpu openvino-genai

What is in whose favour: the search for passages is in the times of Tandem and the tutorial only; the others are given
the prompt with Tandem's passages in it. Tandem also checks sentences, cites and may refuse, and shows a sentence when
it is checked: `first token` is when its model made the first one, `first text` when the reader sees some. Answers
differ in length, because weights are rounded differently and Tandem ends an answer that refuses; so one column gives
the time of an answer of full length at the median speed. Without its cache the server of llama-cpp-python still keeps
the prompt that it read last, and so the instruction that all prompts begin with. The wheel of xllamacpp is built for
any processor; --llama-server takes a program built for this one (cmake -DGGML_NATIVE=ON), llama.cpp at its best.

Passages are cold when no question before had them. They are known when the same was asked before in other words and
found the same passages in the same order, which is the best case of every cache here.
With passage_cache Tandem reads passages apart from each other, which changes what the model makes of them.
Every number of clients gets a fresh server. Processor time is of the server alone; the peak of memory counts loading.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from peers.contenders import NAMES, Setup, contenders
from peers.questions import choose
from peers.rounds import Round, Run, check_installed, measure
from peers.table import tables

from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights
from service.assembly import chunk_size, load_embedder
from service.settings import Settings, load_settings
from tuner.basemodel import base_model_weights

MANUAL = Path(__file__).parents[2] / "corpora"


def write_q8_0(model: Path, template: Path, target: Path) -> Path:
    """The weights in the GGUF type with 8 bits, beside which the bundled file has 4."""
    from safetensors.numpy import load_file

    from tuner.gguf_export import write_gguf

    write_gguf(load_file(model / "model.safetensors"), template, target, name="SmolLM2", numbers="q8_0")
    return target


def write_documents(store: Store, target: Path) -> Path:
    """The texts as Tandem read them, one JSON object a line, for the peer that indexes too."""
    with store.read() as snapshot:
        texts = [snapshot.document(str(item["id"])).text for item in snapshot.list_documents()]
    target.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return target


def prepare(options: argparse.Namespace, work: Path) -> tuple[Setup, Run]:
    """Index the corpus, choose the questions, write the files that peers read."""
    from transformers import AutoTokenizer

    settings: Settings = load_settings(home=work / "home", corpora=(options.corpus,), k=options.k)
    embedder = load_embedder(settings)
    store = Store(settings.home)
    sync(store, [options.corpus], embedder, chunk_size(settings))
    model = base_model_weights("bundled", settings.weights_folder).path
    bundled = next(settings.weights_folder.glob("SmolLM2-135M-Instruct-GGUF/*.gguf"))
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    warm, questions = choose(Retriever(store, embedder), tokenizer, options.pairs, settings, options.questions)
    longest = max(asked.tokens for item in questions for asked in (warm, item.cold, item.known))
    setup = Setup(
        python=options.python,
        home=settings.home.resolve(),
        weights=settings.weights_folder.resolve(),
        documents=write_documents(store, work / "documents.jsonl"),
        embedder=embedder_weights("bundled", settings.weights_folder).path,
        model=model,
        ggufs=tuple(options.gguf) or (write_q8_0(model, bundled, work / "SmolLM2-135M-Instruct.Q8_0.gguf"), bundled),
        llama_server=options.llama_server,
        threads=options.threads,
        slots=max(options.clients),
        k=options.k,
        context=-(-(longest + options.max_tokens + 1) // 256) * 256,
    )
    store.close()
    lengths = [item.cold.tokens for item in questions]
    print(
        f"{len(questions)} questions; prompts of {min(lengths)} to {max(lengths)} tokens, median {median(lengths):.0f}"
    )
    return setup, Run(warm, questions, tokenizer, options.max_tokens, options.threads, work)


def arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter that has the peers other than Tandem")
    parser.add_argument("--peers", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--corpus", type=Path, default=MANUAL, help="folder of documents")
    parser.add_argument("--pairs", type=Path, default=MANUAL / "manual.pairs.jsonl", help="questions about it")
    parser.add_argument("--gguf", type=Path, action="append", default=[], help="in place of Q8_0 and the bundled file")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server, built for this processor")
    parser.add_argument("--threads", type=int, default=cores, help="threads, and cores that servers are held to")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=1, help="fresh servers of each kind, in turns")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--work", type=Path, help="folder that keeps the index, the Q8_0 file and the servers' logs")
    parser.add_argument("--json", type=Path, help="where every answer's times are written")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    if unknown := set(options.peers) - set(NAMES):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    if not 1 <= options.threads <= cores:
        parser.error(f"--threads is 1 to {cores}, the cores of this process")
    if max(options.clients) > options.questions:
        parser.error("every client asks at least one question: raise --questions")
    return options


def main() -> None:
    options = arguments()
    # So that a run that is stopped stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in [name for name in os.environ if name.startswith("TANDEM_") and name != "TANDEM_WEIGHTS"]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        setup, run = prepare(options, work)
        everyone = [contender for peer in options.peers for contender in contenders(peer, setup)]
        for contender in everyone:
            check_installed(contender)
        rounds: list[Round] = []
        for _ in range(options.repeat):
            for clients in options.clients:
                for contender in everyone:
                    rounds += measure(contender, clients, run)
                    print(f"{contender.name}, {clients} clients: ready after {rounds[-1].ready:.1f} s", flush=True)
                    if options.json:
                        options.json.write_text(json.dumps([asdict(item) for item in rounds], indent=1))
    print(f"\n{options.threads} threads, k = {options.k}\n\n{tables(rounds, options.max_tokens)}")


if __name__ == "__main__":
    main()
