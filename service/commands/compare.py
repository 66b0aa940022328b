"""tandem compare: the same questions in every mode, the report, and its verdict."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.store import Store
from service.answering import Answerer
from service.assembly import load_answerer, silent, warm_up
from service.commands.console import note, out, out_json, sync_progress
from service.compare.body import make_body, stored
from service.compare.costs import arm_costs, changed_fact
from service.compare.drift import save_scores
from service.compare.figures import draw_figures
from service.compare.formats import pattern_check, schema_check
from service.compare.freshness import FACTS, freshness
from service.compare.history import FRESHNESS_FILE, REPORT_FILE, VERDICT_FILE, new_comparison, save_verdict, write_json
from service.compare.judge import ServerJudge
from service.compare.markdown import markdown
from service.compare.records import ANSWERS_FILE
from service.compare.run import Options, Prepared, Report, ask, collect, place_of, prepare, with_adapters
from service.compare.scoring import FormatCheck
from service.settings import Settings
from tuner.active import active_adapter
from tuner.generation import TorchGenerator


@dataclass(frozen=True, slots=True)
class Extras:
    """What else to measure, and where to put the report besides the home folder."""

    out: Path | None = None
    schema: Path | None = None
    pattern: str | None = None
    judge: str | None = None
    judge_model: str = ""


def run_compare(settings: Settings, options: Options, extras: Extras, *, as_json: bool) -> dict[str, Any]:
    """Compare, write the report, show the verdict. Raises TandemError; what was answered by then is kept."""
    is_formatted = _format_check(extras)
    report = silent if as_json else note
    judge = None if extras.judge is None else ServerJudge(extras.judge, extras.judge_model, note=note)
    store = Store(settings.home)
    active = active_adapter(settings.home, settings.base_model)
    prepared = prepare(settings, store, with_adapters(options, active))
    if extras.out is not None:
        _check_out(extras.out)
    answerer = load_answerer(settings, store, report)
    warm_up(answerer)
    folder = place_of(prepared)
    report(f"{len(prepared.items)} questions in {len(prepared.asked_arms)} arms; answers are kept in {folder}.")
    with sync_progress() as progress:
        ask(prepared, folder, answerer, judge, progress)
        body = _finish(prepared, folder, store, answerer, is_formatted, progress)
    store.close()
    if extras.out is not None:
        copied = [path for path in folder.iterdir() if path.suffix == ".png" or path.stem == "report"]
        for path in [*copied, folder / ANSWERS_FILE, folder / VERDICT_FILE]:
            shutil.copyfile(path, extras.out / path.name)
    if as_json:
        out_json(body)
    else:
        _show(body, extras.out or folder)
    return body


def run_freshness(settings: Settings, options: Options, folder: Path | None, *, as_json: bool) -> dict[str, Any]:
    """Change and delete facts in a copy of the index, ask about them, show what is still said. Raises TandemError."""
    store = Store(settings.home)
    active = active_adapter(settings.home, settings.base_model)
    # Which questions have facts that can be changed is known only in the copy; `limit` is how many of them to take.
    prepared = prepare(settings, store, replace(with_adapters(options, active), limit=None))
    if folder is not None:
        _check_out(folder)
    answerer = load_answerer(settings, store, silent if as_json else note)
    with sync_progress() as progress:
        body = freshness(prepared, store, answerer, options.limit or FACTS, progress)
    body["again"] = {**prepared.plan, "pairs": options.pairs.name, "base": dict(_base(answerer))}
    store.close()
    kept = new_comparison(settings.home)
    write_json(kept / FRESHNESS_FILE, body)
    if folder is not None:
        shutil.copyfile(kept / FRESHNESS_FILE, folder / FRESHNESS_FILE)
    if as_json:
        out_json(body)
        return body
    for title, key in (("After a fact was changed", "changed"), ("After its document was deleted", "deleted")):
        out(f"{title}, of {len(body['facts'])} answers:")
        for arm, counts in body[key].items():
            out(f"  {arm:20}" + ", ".join(f"{count} {name}" for name, count in counts.items()))
    out(f"Every answer is in {(folder or kept) / FRESHNESS_FILE}.")
    return body


def _finish(
    prepared: Prepared,
    folder: Path,
    store: Store,
    answerer: Answerer,
    is_formatted: FormatCheck | None,
    progress: Report,
) -> dict[str, Any]:
    answered = collect(prepared, folder, is_formatted)
    costs = arm_costs(prepared, store, answerer) | {"changed_fact": changed_fact(prepared, store, answerer, progress)}
    body, verdict = make_body(prepared, answered, folder, costs, _base(answerer))
    figures = draw_figures(body, folder)
    (folder / "report.md").write_text(markdown(body, figures), encoding="utf-8", errors="backslashreplace")
    save_verdict(folder, stored(prepared, verdict, body, folder))
    save_scores(folder, answered, prepared.options.pairs.name)
    # Last: a comparison with a report is finished.
    write_json(folder / REPORT_FILE, body)
    return body


def _base(answerer: Answerer) -> Mapping[str, str]:
    generator = answerer.generator
    if not isinstance(generator, TorchGenerator):
        return {}
    base = generator.base
    return {"name": base.name, "sha256": base.sha256, "quantisation": base.quantisation, "device": base.device}


def _format_check(extras: Extras) -> FormatCheck | None:
    if extras.schema is not None and extras.pattern is not None:
        raise TandemError("--schema and --pattern do not go together.", do="Name one of them.")
    if extras.schema is not None:
        return schema_check(extras.schema)
    return None if extras.pattern is None else pattern_check(extras.pattern)


def _check_out(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TandemError(
            f"The folder {folder} cannot be made: {error}.", expected="A folder to write to.", do="Name another one."
        ) from None


def _show(body: Mapping[str, Any], folder: Path) -> None:
    measures = ("truthfulness", "f1", "correct", "refusal_absent", "refusal_misleading", "over_refusal")
    shown = [measure for measure in measures if any(measure in arm for arm in body["arms"].values())]
    heads = [*(name.partition("_")[::2] for name in shown), ("seconds", "p50")]
    widths = [max(map(len, (*head, "-0.000"))) + 2 for head in heads]
    first = max(map(len, body["arms"]))
    for line in range(2):
        words = "".join(f"{head[line]:>{width}}" for head, width in zip(heads, widths, strict=True))
        out(f"{'' if line else 'arm':{first}}{words}")
    for name, arm in body["arms"].items():
        seconds = arm["latency_ms"]["p50"]
        cells = [f"{arm[measure]['value']:.3f}" if measure in arm else "" for measure in shown]
        cells.append("" if seconds is None else f"{seconds / 1000:.2f}")
        out(f"{name:{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    out()
    verdict = body["verdict"]
    for reason in verdict["reasons"]:
        out(reason)
    for kind, sentence in verdict["by_kind"].items():
        out(f"{kind}: {sentence}")
    out()
    out(f"The report is {folder / 'report.md'}.")
