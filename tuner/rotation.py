"""Keys of passages moved to other positions, so that a passage that was read once can stand anywhere.

Where the passages of a prompt do not see each other (tuner/blocks.py), the keys and values of each depend on its own
tokens only, and with rotary embeddings (Su et al. 2021, arXiv 2104.09864) moving it by p positions turns each pair of
dimensions of its keys by p times their frequency. So a passage is turned to where it stands and joined (as in
Block-Attention, arXiv 2409.15355, and TurboRAG, arXiv 2410.07590), and only the question is left to read.

Notation: as in tuner/stepcache.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexer.errors import TandemError
from tuner.basemodel import BaseModel
from tuner.kept import Kept

_SHIFT = 37
# Of the largest key: float32 turns to within 1e-5, float16 and bfloat16 round the keys themselves.
_CLOSE = 2e-2


class Rotation:
    """Moves keys to other positions. Raises TandemError for a model whose keys cannot be moved so."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        if base.compiled:
            # Its keys are turned by these alone.
            self._frequencies = base.compiled.frequencies
            return
        body = getattr(base.model, base.model.base_model_prefix, None)
        rotary = getattr(body, "rotary_emb", None)
        frequencies = getattr(rotary, "inv_freq", None)
        if frequencies is None or not self._turns_as_expected(frequencies):
            raise TandemError(
                f"The passages of {base.name} cannot be read apart and joined.",
                expected="A model with rotary position embeddings that do not depend on the length of the text.",
                do='Set passage_cache to "off".',
                code="conflict",
            )

    def moved(self, kept: Kept, position: int) -> Kept:
        """What was read from position 0 on, as if read from `position` on."""
        return Kept(self._turned(kept.keys, position), kept.values)

    def _turned(self, keys: Any, position: int) -> Any:
        import torch

        # In float64, where the angle of a far position keeps its digits.
        angle = self._frequencies.double() * position
        half = len(angle)
        with torch.inference_mode():
            cos, sin = angle.cos().to(keys.dtype), angle.sin().to(keys.dtype)
            first, second, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
            return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

    def _turns_as_expected(self, frequencies: Any) -> bool:
        """Try it: the keys of the first layer depend on token and position only, so they must come out the same."""
        import torch

        self._frequencies = frequencies
        ids = [3, 5, 4, 7, 6]
        try:
            start, later = (self._first_keys(ids, position) for position in (0, _SHIFT))
        except (TypeError, ValueError, RuntimeError, AttributeError):
            # Whatever a family of models does not take, it cannot be joined.
            return False
        if start.shape[-1] < 2 * len(frequencies):
            return False
        return bool((self._turned(start, _SHIFT) - later).abs().max() <= _CLOSE * later.abs().max()) and not (
            torch.equal(start, later)
        )

    def _first_keys(self, ids: Sequence[int], position: int) -> Any:
        import torch

        from tuner.stepcache import StepCache

        cache = StepCache(self._base.model.config, len(ids))
        if not cache.is_plain:
            raise ValueError("not a plain cache")
        places = torch.arange(position, position + len(ids), device=self._base.device)[None]
        with torch.inference_mode():
            self._base.model(
                input_ids=torch.tensor([list(ids)], device=self._base.device),
                position_ids=places,
                past_key_values=cache.library,
                use_cache=True,
            )
        return cache.copy(0, len(ids)).keys[:1]
