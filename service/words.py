"""Text to the words that tell something, with what a check must know of them: numbers, names, and what is denied.

Denial is found as NegEx does it (Chapman et al. 2001, J. Biomed. Inform. 34): a negating word reaches forward to the
end of its clause.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from indexer.words import STOP_WORDS

_TOKEN = re.compile(r"(?<!\S)-\d+(?:[.,]\d+)*|\d+(?:[.,]\d+)*|[^\W\d]\w*\d(?:\.\d+)+|\w+|[.,;:!?()\n]")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# "One" is left out: it is a pronoun more often than a number.
_NUMBERS = {
    word: str(number)
    for number, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)
}
_DENIALS = frozenset("no not never without neither nor none nothing".split())
_CLAUSE_WORDS = frozenset("and but however although though because since while whereas which who so yet".split())
_REWRITES = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"[’‘`´]", "'"),
        ("−", "-"),
        (r"\bcan(?:'t|not)\b", "can not"),
        (r"\bwon't\b", "will not"),
        (r"n't\b", " not"),
        (r"'(?:s|re|ve|ll|d|m)\b", ""),
        # These deny nothing ...
        (r"\bnot only\b", ""),
        (r"\b(?:no|not) (?=(?:more|less|fewer|later|earlier|longer|larger) than\b)", ""),
        # ... and these do.
        (r"\b(?:instead of|rather than)\b", "not"),
    )
]
_ENDINGS = "ations ation ings ing ies ied ises izes ised ized ers ed es er s e y".split()
# Too short for the endings, and the commonest verb of all manuals.
_IRREGULAR = {"uses": "use", "used": "use", "using": "use"}


@dataclass(frozen=True, slots=True)
class Words:
    """Stems of the telling words of a text; `said` and `denied` overlap where a word is both.

    `numbers` and `names` (capital letters but for the first word) are the stems that allow no approximation.
    """

    said: frozenset[str]
    denied: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """Every telling word."""
        return self.said | self.denied


def read_words(text: str) -> Words:
    """The telling words of a text."""
    said, denied, numbers, names = set[str](), set[str](), set[str](), set[str]()
    denying, first = False, True
    for token in _TOKEN.findall(_rewritten(text)):
        word = token.lower()
        if not (word[-1].isalnum() or word[-1] == "_") or word in _CLAUSE_WORDS:
            denying = False
        elif word in _DENIALS:
            denying = True
        elif word not in STOP_WORDS:
            root = stem(word)
            (denied if denying else said).add(root)
            if any(character.isdigit() for character in root):
                numbers.add(root)
            elif token[1:] != token[1:].lower() or (token[0].isupper() and not first):
                names.add(root)
        first = False
    return Words(frozenset(said), frozenset(denied), frozenset(numbers), frozenset(names))


def telling_words(text: str) -> frozenset[str]:
    """Stems of the telling words, denied or not."""
    return read_words(text).all


def stem(word: str) -> str:
    """A lower-case word without its commonest English endings, so that "adds" supports "added"; numbers in digits."""
    if any(character.isdigit() for character in word):
        return word.replace(",", "") if _THOUSANDS.fullmatch(word) else word
    if word in _NUMBERS:
        return _NUMBERS[word]
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    return next((word[: -len(end)] for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3), word)


def _rewritten(text: str) -> str:
    # One form for what a reader takes for the same: composed accents, kinds of apostrophes, short and long denials.
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text
