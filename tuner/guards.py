"""Warnings before a run: what usually goes wrong with such settings, and why.

Only too few rows, and rows without an answer, are errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from indexer.errors import TandemError
from tuner.groups import ANSWER_ROOM, Encoded
from tuner.objective import learned_tokens
from tuner.recipe import Recipe

LEAST_ROWS = 8
FEW_ROWS = 200
HIGH_RANK = 64
MANY_EPOCHS = 5
# Over these, the loss of such a recipe often rises again or the base forgets; ten times the usual rate.
HIGH_RATES: Mapping[str, float] = {
    "qlora": 2e-3,
    "lora": 2e-3,
    "lora-int8": 2e-3,
    "partial": 3e-4,
    "full": 1e-4,
    "dpo": 2e-4,
}
MOST_SHORTENED = 0.3
MOST_LEFT_OUT = 0.1
# A document with so many answerable questions and no misleading one shows that its subject means an answer.
MANY_ANSWERED = 5
MOST_ONE_SIDED = 0.3


def check_count(rows: int, what: str = "rows") -> None:
    """Raise TandemError for fewer than LEAST_ROWS: nothing but those few would be learned."""
    if rows < LEAST_ROWS:
        raise TandemError(
            f"There are {rows} {what} to learn from.",
            expected=f"At least {LEAST_ROWS}; a few hundred for a model that answers other questions too.",
            do="Add pairs, or make some with `tandem pairs make`.",
        )


def check_learned(encoded: Encoded) -> None:
    """Raise TandemError for a group without a token to learn from: it would only cost time."""
    for number, group in enumerate(encoded.groups, start=1):
        if learned_tokens(group) == 0 or not all(any(ending.learned) for ending in group.endings):
            raise TandemError(
                f"Group {number} of the rows has a row without a token to learn.",
                expected="An answer in every row.",
                do="Give that row an answer.",
            )


def find_warnings(recipe: Recipe, rows: int, shortened: int, left_out: int = 0) -> list[str]:
    """What is likely to go wrong, in plain sentences. `shortened` rows lost passages to --longest.

    `left_out` rows are not among `rows`: they lost what their answer cites, or their answer is too long.
    """
    found: list[str] = []
    high, rate = HIGH_RATES[recipe.name], recipe.schedule.learning_rate
    if rate > high:
        found.append(
            f"The learning rate {rate:g} is high for {recipe.name} (over {high:g}): the loss may"
            " jump, and the model may forget what it knew."
        )
    if recipe.epochs > MANY_EPOCHS:
        found.append(
            f"{recipe.epochs:g} epochs: after about three, rows are learned by heart rather than understood."
            " --patience ends the run when held-out rows stop gaining."
        )
    if recipe.trains_adapter and recipe.name != "dpo" and recipe.r > HIGH_RANK:
        found.append(
            f"Rank {recipe.r} is high: more is learned by heart and more of the base forgotten; 8 to 32 is usual."
        )
    if recipe.dora:
        found.append(
            "A DoRA adapter changes the length of whole rows of weights: Tandem serves it with `quantisation` none, and"
            " not over the int8 weights that are the default on a CPU."
        )
    if rows < FEW_ROWS and (recipe.name in ("full", "partial") or recipe.target_modules == "all-linear"):
        found.append(
            f"{rows} rows are few for training all layers: under {FEW_ROWS} the answers are soon learned by heart."
            " --target-modules qv or a lower --r trains less."
        )
    if rows and shortened >= MOST_SHORTENED * rows:
        found.append(
            f"{shortened} of {rows} rows lost passages because their prompts are over {recipe.longest} tokens:"
            " they teach less than they could. Raise --longest, or make rows with a lower --k."
        )
    if left_out >= MOST_LEFT_OUT * (rows + left_out) > 0:
        found.append(
            f"{left_out} of {rows + left_out} rows are left out: a prompt may have {recipe.longest} tokens (or what"
            f" the base model can read) and its answer {ANSWER_ROOM} more. Raise --longest, or shorten the answers."
        )
    return found


def one_sided_warning(answered: Iterable[str], misled: Iterable[str]) -> str | None:
    """A warning where misleading questions leave out documents that many answerable ones are about.

    `answered` has the document of each answerable question, `misled` that of each misleading one. What is to be refused
    can then be learned from the subject instead of the question (annotation artifacts: Gururangan et al. 2018, arXiv
    1803.02324). None where no question is misleading, for then nothing is told apart.
    """
    counts, told_apart = Counter(answered), set(misled)
    one_sided = {name: n for name, n in counts.items() if n >= MANY_ANSWERED and name not in told_apart}
    asked = sum(one_sided.values())
    if not told_apart or not one_sided or asked < MOST_ONE_SIDED * counts.total():
        return None
    return (
        f"{asked} of {counts.total()} answerable questions are about documents, such as {next(iter(one_sided))}, that"
        " no misleading question is about: what to refuse can be learned from the subject instead of the question. Add"
        " misleading questions about those documents."
    )
