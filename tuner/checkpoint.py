"""The state of a run as one safetensors file that is replaced atomically: parameters, optimiser, the best so far.

Nothing random is kept, because nothing random has a state (tuner/schedule.py). Tensors of the optimiser are stored
under the name of their parameter; its numbers, which some optimisers keep outside of tensors, stand in the metadata.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from tuner.schedule import Progress


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run changes. `identity` tells one run from another: its items, its settings, its parameters."""

    parameters: Mapping[str, Any]
    optimiser: Any
    identity: str

    def save(self, path: Path, progress: Progress, best: Mapping[str, Any]) -> None:
        """Replace `path`. Raises TandemError (unavailable) when it cannot be written; the old file stays then."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Any] = {f"best/{name}": value for name, value in best.items()}
        numbers: dict[str, float] = {}
        for name, parameter in self.parameters.items():
            tensors[f"now/{name}"] = parameter.detach()
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if hasattr(value, "contiguous"):
                    tensors[f"{key}/{name}"] = value
                else:
                    numbers[f"{key}/{name}"] = value
        metadata = {"progress": json.dumps(asdict(progress)), "run": self.identity, "numbers": json.dumps(numbers)}
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            kept = "The checkpoint before it is whole." if path.exists() else "There is none before it."
            raise TandemError(
                f"The checkpoint {path} cannot be written at step {progress.step}: {error}. {kept}",
                expected="Room on that disk.",
                do="Make room, then go on with --resume.",
                code="unavailable",
            ) from error

    def load(self, path: Path) -> tuple[Progress, dict[str, Any]]:
        """Set parameters and optimiser to what `save` wrote; returns its progress and its best.

        Raises TandemError (conflict) when the file is of another run, and (invalid_request) when it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        except (SafetensorError, OSError) as error:
            raise TandemError(
                f"The checkpoint {path} cannot be read: {error}.",
                expected="A file that the tuner wrote.",
                do="Start the run again with --force.",
            ) from error
        if metadata.get("run") != self.identity:
            raise TandemError(
                f"The checkpoint {path} is of a run with other rows or other settings.",
                expected="The rows and the settings it was started with.",
                do="Give those, or start again with --force.",
                code="conflict",
            )
        numbers = json.loads(metadata["numbers"])
        best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
        self._set(tensors, numbers)
        values = json.loads(metadata["progress"])
        values["validation"] = [tuple(item) for item in values["validation"]]
        return Progress(**values), best

    def _set(self, tensors: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        import torch

        states: dict[str, dict[str, Any]] = {}
        for entry, value in (*tensors.items(), *numbers.items()):
            key, _, name = entry.partition("/")
            if key != "best":
                states.setdefault(name, {})[key] = value
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                state = states[name]
                parameter.copy_(state.pop("now"))
                if state:
                    self.optimiser.state[parameter] = self._moments(parameter, state)

    def _moments(self, parameter: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        if not getattr(self.optimiser, "is_paged", False):
            # PyTorch's AdamW counts its steps in a tensor that stays on the CPU.
            return {key: value if key == "step" else value.to(parameter.device) for key, value in state.items()}
        # Memory that can leave the GPU has to come from the optimiser itself.
        parameters = self.optimiser.param_groups[0]["params"]
        place = next(place for place, known in enumerate(parameters) if known is parameter)
        self.optimiser.init_state(self.optimiser.param_groups[0], parameter, 0, place)
        made: dict[str, Any] = self.optimiser.state[parameter]
        for key, value in state.items():
            if hasattr(value, "to"):
                made[key].copy_(value)
            else:
                made[key] = value
        return made
