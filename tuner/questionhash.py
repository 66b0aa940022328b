"""A question as a short hash: an adapter's card can tell which questions it was trained on without holding them."""

from __future__ import annotations

import hashlib

LENGTH = 16


def question_hash(text: str) -> str:
    """16 hex characters of the SHA-256 of the question without differences of case and white space."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass")).hexdigest()[:LENGTH]
