"""tandem serve and tandem up."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, files
from ipaddress import ip_address
from pathlib import Path

from indexer.database import exclusive
from indexer.embedding import Embedder
from indexer.errors import TandemError
from indexer.store import Store
from indexer.sync import known_corpora, sync
from service.assembly import chunk_size, corpora_to_index, load_embedder
from service.commands.console import note, sync_progress
from service.commands.index import show_outcome
from service.keys import Keyring
from service.logs import set_up_logs
from service.running import Service
from service.settings import Settings

MANUAL = "share/tandem/corpora"


def run_serve(settings: Settings) -> None:
    """Serve until interrupted. Raises TandemError for an address that is taken or must not be open."""
    store = Store(settings.home)
    check_exposure(settings, store)
    with _listening(settings) as listener:
        _serve(settings, store, listener, None)


def run_up(settings: Settings) -> None:
    """Fetch the weights, index the corpora, serve. Raises TandemError, also when this home is already up."""
    taken = TandemError(
        f"Tandem is already up on the home folder {settings.home}.",
        do="Use the one that runs, stop it, or set TANDEM_HOME to another folder.",
        code="conflict",
    )
    with ExitStack() as stack:
        stack.enter_context(exclusive(settings.home, "up", taken))
        store = Store(settings.home)
        check_exposure(settings, store)
        # The port is taken first: a clash must show before minutes of indexing.
        listener = stack.enter_context(_listening(settings))
        corpora = _corpora(settings, store)
        embedder = load_embedder(settings, note)
        with sync_progress() as report:
            outcome = sync(store, corpora, embedder, chunk_size(settings), report=report)
        show_outcome(outcome, as_json=False)
        sys.stdout.flush()
        _serve(settings, store, listener, embedder)


def _corpora(settings: Settings, store: Store) -> list[Path]:
    corpora = corpora_to_index(settings, store)
    if any(path.exists() for path in corpora) or known_corpora(store):
        return corpora
    manual = installed_manual()
    if manual is None or "corpora" in settings.model_fields_set:
        return corpora
    note(
        "There is no ./corpora folder here, so Tandem's own manual is indexed; put documents in ./corpora to ask them."
    )
    return [manual]


def installed_manual() -> Path | None:
    """The folder with the manual that was installed with the package, if there is one."""
    for path in (Path(sys.prefix, MANUAL), Path(sys.base_prefix, MANUAL)):
        if path.is_dir():
            return path
    try:
        pages = [Path(str(file.locate())) for file in files("tandem-qa") or () if MANUAL in str(file)]
    except PackageNotFoundError:
        return None
    return pages[0].resolve().parent.parent if pages else None


def check_exposure(settings: Settings, store: Store) -> None:
    """Raise TandemError when the service would listen beyond this machine without any key."""
    host = settings.host
    try:
        loopback = host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback and Keyring(store, settings).is_open():
        raise TandemError(
            f"The service would listen on {host}, where others can reach it, and has no access key.",
            expected="At least one key, or a loopback address.",
            do="Run `tandem keys create NAME --admin` (or set TANDEM_ADMIN_KEY), or use --host 127.0.0.1.",
        )


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        listener.close()
        raise TandemError(
            f"Port {settings.port} of {settings.host} cannot be used: {error.strerror}.",
            expected="A free port.",
            do="Stop the program that uses it, or choose another one with --port.",
            code="conflict",
        ) from error
    return listener


def _serve(settings: Settings, store: Store, listener: socket.socket, embedder: Embedder | None) -> None:
    from service.server import Server, allow_connections

    set_up_logs(settings.log_level, settings.log_format)
    allow_connections()
    service = Service(settings, store)
    service.load(embedder)
    host, port = listener.getsockname()[:2]
    note(f"Tandem serves http://{f'[{host}]' if ':' in host else host}:{port} (stop with Ctrl-C)")
    Server(service).run(sockets=[listener])
