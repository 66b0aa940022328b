"""Keys and values of tokens that were read, as they are kept between requests.

Notation: L layers, h heads of keys, n tokens, d dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


# What a key is of ("head", "passage" apart from others, "placed" behind all that the tokens begin with), the weights
# of the adapter (None without one), the tokens.
Key = tuple[str, str | None, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys and values of n tokens, each (L, h, n, d)."""

    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        """The memory it takes."""
        return sum(part.numel() * part.element_size() for part in (self.keys, self.values))
