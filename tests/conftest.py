"""Fixtures that cost seconds to make, made once: real weights and the models loaded from them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FixedAdapters, HashingEmbedder, Script, ScriptedGenerator

from indexer.chunking import ChunkSize
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights
from service.answering import Answerer
from service.running import Service
from service.settings import Settings
from tuner.basemodel import BaseModel, load_base_model


@pytest.fixture(scope="session")
def weights_cache() -> Path:
    """Where bundled weights are kept between runs; the first run on a machine fetches them."""
    return Path(os.environ.get("TANDEM_WEIGHTS") or Path(__file__).parents[1] / ".tandem" / "weights")


@pytest.fixture(scope="session")
def embedder(weights_cache: Path) -> Path:
    """The folder of the bundled embedder."""
    return embedder_weights("bundled", weights_cache).path


@pytest.fixture(scope="session")
def base_model(weights_cache: Path) -> BaseModel:
    """The bundled base model in float32. Shared: a test that attaches adapters to it switches them off again."""
    return load_base_model("bundled", cache=weights_cache, device="cpu")


LIBRARY = {
    "tides.md": "# Tides\n\nThe moon raises the tides of the ocean twice a day. Spring tides come at full moon.\n",
    "bread.md": "# Bread\n\nBread rises because yeast makes carbon dioxide. The oven is heated to 230 degrees.\n",
    "iron.txt": "Iron melts at 1538 degrees Celsius. A blast furnace does not burn wood.\n",
    "notes/<b>marmot.txt": "Marmots whistle <script>alert(1)</script> & hide in burrows.\n",
}


def write_library(folder: Path) -> Path:
    """A small corpus."""
    for name, text in LIBRARY.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `corpus` and its index in `home`; copy it, never change it."""
    folder = tmp_path_factory.mktemp("library")
    store = Store(folder / "home")
    sync(store, [write_library(folder / "corpus")], HashingEmbedder(), ChunkSize(40, 8))
    store.close()
    return folder


@pytest.fixture
def home(library: Path, tmp_path: Path) -> Path:
    """An indexed home folder of one's own."""
    return Path(shutil.copytree(library / "home", tmp_path / "home"))


MakeService = Callable[..., Service]


@pytest.fixture
def make_service(home: Path, library: Path) -> Iterator[MakeService]:
    """make_service(script or generator, adapters, **settings): a service with the answerer ready, closed at the end."""
    made: list[Service] = []

    def make(
        generator: ScriptedGenerator | Script = "", adapters: FixedAdapters | None = None, **options: object
    ) -> Service:
        corpora = (library / "corpus",)
        values = {"home": home, "corpora": corpora, "chunk_tokens": 40, "chunk_overlap": 8, "k": 4} | options
        settings = Settings(**values)  # type: ignore[arg-type]
        if not isinstance(generator, ScriptedGenerator):
            generator = ScriptedGenerator(generator)
        store = Store(settings.home)
        retriever = Retriever(store, HashingEmbedder())
        answerer = Answerer(retriever, generator, settings, adapters or FixedAdapters())
        made.append(Service(settings, store, answerer))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture(scope="session")
def server_url(weights_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`tandem up` over the manual with the real weights, without keys; ended with the session."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")} | {
        "TANDEM_HOME": str(folder / "home"),
        "TANDEM_WEIGHTS": str(weights_cache.resolve()),
        "TANDEM_CORPORA": str(Path(__file__).parents[1] / "corpora"),
        "TANDEM_QUEUE_SECONDS": "300",
    }
    command = [str(Path(sys.executable).with_name("tandem")), "up", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}/"
        try:
            _wait_until_ready(url, process, folder / "log")
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 420
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not become ready:\n{log.read_text()}")
