"""What the experiments of the trade-off share: a home with an index, an adapter in it, a comparison, a table.

Everything goes through what `tandem index`, `tandem tune` and `tandem compare` call. An adapter that the home holds
already is used as it is, so that an experiment that was cut off goes on.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from service.commands.compare import Extras, run_compare
from service.commands.index import run_index
from service.commands.rows import RowSources
from service.commands.tune import Request, run_tune
from service.compare.run import Options
from service.settings import Settings, load_settings
from tuner.adapters import adapter_path, read_card
from tuner.recipe import Recipe

MEASURES = ("correct", "f1", "over_refusal")


def parse(about: str | None, **files: str) -> argparse.ArgumentParser:
    """A parser with what every experiment takes; `files` are its positional arguments with their help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in files.items():
        parser.add_argument(name, type=Path, help=text)
    parser.add_argument("--home", type=Path, required=True, help="A folder for the index and the adapters.")
    parser.add_argument("--json", type=Path, default=None, help="Where to keep everything that was measured.")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, gzipped or not."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> Path:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values), encoding="utf-8")
    return path


def open_home(home: Path, corpora: Path, **changes: Any) -> Settings:
    """Settings of a home whose index is in step with the corpora."""
    settings = load_settings(home=home.resolve(), corpora=(corpora.resolve(),), **changes)
    with redirect_stdout(sys.stderr):
        run_index(settings, [], dry_run=False, allow_empty=False, as_json=True)
    return settings


def tuned(settings: Settings, name: str, sources: RowSources, recipe: Recipe) -> Mapping[str, Any]:
    """The metrics of the adapter of that name, which is trained if there is none yet."""
    folder = adapter_path(settings.home, name)
    if not folder.is_dir():
        with redirect_stdout(sys.stderr):
            run_tune(settings, Request(recipe, sources, name=name, force=True), as_json=True)
    return read_card(folder).metrics


def compared(settings: Settings, pairs: Path, modes: Sequence[str], adapter: str = "", **options: Any) -> Any:
    """The body of a comparison; `options` are those of the comparison, and `pattern`."""
    extras = Extras(pattern=options.pop("pattern", None))
    adapters = (adapter,) if adapter else ()
    with redirect_stdout(sys.stderr):
        return run_compare(settings, Options(pairs, tuple(modes), adapters, **options), extras, as_json=True)


def cell(measure: Mapping[str, float] | None) -> str:
    """A mean with its 95 % interval."""
    return "" if measure is None else f"{measure['value']:.2f} ({measure['low']:.2f} to {measure['high']:.2f})"


def tokens(arm: Mapping[str, Any]) -> str:
    """Tokens of a request: read and written."""
    return f"{arm['prompt_tokens']:.0f} + {arm['completion_tokens']:.0f}"


def show(arms: Mapping[str, Mapping[str, Any]], measures: Sequence[str] = MEASURES) -> None:
    """A Markdown table of the arms."""
    print(f"| Arm | n | {' | '.join(measures)} | Tokens read + written | Median seconds |")
    print("|---" * (len(measures) + 4) + "|")
    for name, arm in arms.items():
        count = max((arm[measure]["n"] for measure in measures if measure in arm), default=0)
        seconds = arm["latency_ms"]["p50"]
        cells = [name, str(count), *(cell(arm.get(measure)) for measure in measures), tokens(arm)]
        print("| " + " | ".join([*cells, f"{seconds / 1000:.2f}" if seconds is not None else ""]) + " |", flush=True)


def training(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a training."""
    known = ("steps", "tokens", "tokens_per_second", "seconds", "train_loss", "validation_loss_before")
    kept = {name: metrics[name] for name in (*known, "validation_loss_after") if name in metrics}
    return {**kept, "forgetting": metrics["forgetting"]}


def keep(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write the result where it was asked for."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
