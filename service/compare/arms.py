"""The arms of a comparison: the four modes, further adapters, and two baselines that any model must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import TandemError
from service.question import MODES, Mode
from tuner.adapters import adapter_path, read_card

BEST_SENTENCE = "best-sentence"
ALWAYS_REFUSE = "always-refuse"
BASELINES = (BEST_SENTENCE, ALWAYS_REFUSE)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer. `mode` is None for a baseline; `adapter` names the one that a tuned mode uses."""

    name: str
    mode: Mode | None
    adapter: str | None = None

    @property
    def retrieves(self) -> bool:
        """Whether it reads passages."""
        return self.mode in ("rag", "rag+tuned") or self.name == BEST_SENTENCE


def plan_arms(modes: Sequence[str], adapters: Sequence[str]) -> list[Arm]:
    """The arms to compare, baselines last; no modes: all that the adapters allow.

    The first adapter's arms are named by their mode, those of a further one "mode:NAME". Raises TandemError for a mode
    that does not exist or needs an adapter when there is none.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise TandemError(
            f"There is no mode {unknown[0]!r} to compare.", expected=", ".join(MODES), do="Choose among these."
        )
    chosen = (
        [mode for mode in MODES if mode in modes] if modes else [mode for mode in MODES if adapters or not _tuned(mode)]
    )
    if not adapters and any(map(_tuned, chosen)):
        raise TandemError(
            "A tuned mode is to be compared, and no adapter is active.",
            expected="An active adapter, or one named with --adapter.",
            do="Run `tandem adapters list` for those there are, or compare `--modes base,rag`.",
            code="conflict",
        )
    arms = [Arm(mode, mode, adapters[0] if _tuned(mode) else None) for mode in chosen]
    for name in dict.fromkeys(adapters[1:]):
        if name != adapters[0]:
            arms += [Arm(f"{mode}:{name}", mode, name) for mode in chosen if _tuned(mode)]
    return [*arms, *(Arm(name, None) for name in BASELINES)]


def _tuned(mode: Mode) -> bool:
    return mode in ("tuned", "rag+tuned")


def adapter_weights(home: Path, arms: Sequence[Arm]) -> dict[str, str]:
    """SHA-256 of the weights of each adapter that the arms use. Raises TandemError for one that is not there."""
    names = {arm.adapter for arm in arms if arm.adapter}
    return {name: read_card(adapter_path(home, name)).weights_sha256 for name in sorted(names)}
