"""Preferences: of two answers to one prompt the better one, and the loss that makes a model tell them apart (DPO).

    loss = -log sigmoid(beta * ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))))

with p the model and q the adapter it started from, frozen (Rafailov et al. 2023, arXiv 2305.18290, equation 7). Both
answers follow the same prompt, which is read once. What q says is computed once, before the first step.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from tuner.grouploss import Reading, group_logits
from tuner.groups import ANSWER_ROOM, Example, Group, group_of, row_prompt, shows_evidence
from tuner.prompt import REFUSAL, Source, training_ids
from tuner.rows import Row


@dataclass(frozen=True, slots=True)
class Preference:
    """A question with its passages (best first; none: closed book), the answer that is wanted and one that is not."""

    question: str
    passages: tuple[Source, ...]
    chosen: str
    rejected: str
    documents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Weighed:
    """A preference as one group of two endings (chosen, rejected), and log q of both, in nats."""

    group: Group
    chosen: float
    rejected: float


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """The loss of preferences. Higher `beta` holds the model nearer to where it started."""

    model: Any
    reading: Reading
    beta: float = 0.1

    def weight(self, item: Weighed) -> int:
        """One."""
        return 1

    def tokens(self, item: Weighed) -> int:
        """Tokens read."""
        return item.group.tokens if self.reading.shared else item.group.tokens + len(item.group.prefix)

    def losses(self, item: Weighed, *, blocks: bool) -> Iterable[Any]:
        """The loss of the preference, in one part: it needs both answers at once."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = answer_logs(self.model, item.group, self.reading, blocks=blocks)
        yield -logsigmoid(self.beta * ((chosen - item.chosen) - (rejected - item.rejected)))


def answer_logs(model: Any, group: Group, reading: Reading, *, blocks: bool = False) -> Any:
    """(n,) log-probabilities of the endings' learned tokens, summed for each ending, with gradient."""
    import torch

    sums = torch.zeros(len(group.endings), device=model.device)
    for logits, targets, endings in group_logits(model, group, reading, blocks=blocks):
        logs = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        sums = sums.index_add(0, endings, logs)
    return sums


def weigh(model: Any, groups: Sequence[Group], reading: Reading, precision: str) -> list[Weighed]:
    """What the model says now, before it is trained, of both answers of each preference."""
    import torch

    from tuner.objective import autocast

    training = model.training
    model.eval()
    weighed = []
    with torch.no_grad(), autocast(model, precision):
        for group in groups:
            chosen, rejected = map(float, answer_logs(model, group, reading))
            weighed.append(Weighed(group, chosen, rejected))
    model.train(training)
    return weighed


def encode_preferences(
    tokenizer: Any, preferences: Sequence[Preference], *, limit: int
) -> tuple[list[Group], int, int]:
    """One group a preference, chosen before rejected; how many lost passages to the limit; how many are left out.

    Left out are those whose wanted answer cites a passage that was lost, and those with an answer that is too long.
    Raises TandemError when none is left.
    """
    groups, shortened, dropped = [], 0, 0
    for item in preferences:
        rows = [_row(item, item.chosen), _row(item, item.rejected)]
        prompt = row_prompt(tokenizer, rows[0], limit)
        shortened += prompt.passages < len(item.passages)
        examples = [Example(*training_ids(prompt, row.answer, tokenizer)) for row in rows]
        longest = max(len(example.ids) for example in examples)
        if shows_evidence(prompt, rows[0]) and longest <= limit + ANSWER_ROOM:
            groups.append(group_of(tokenizer, examples, prompt))
        else:
            dropped += 1
    if not groups:
        raise TandemError("There is no preference to learn from.", expected="At least one.", do="Check the file.")
    return groups, shortened, dropped


def preferences_of(rows: Sequence[Row], seed: int) -> list[Preference]:
    """Preferences made of training rows: evidence is answered and not refused, what is missing is refused.

    Rejected are, for an evidence row, the refusal or the answer of another question about the same passages (half
    each, where there is one); for a refusal row an answer that its passages gave to another question. Rows without
    passages, and refusals whose passages answer nothing, give none.
    """
    rng = random.Random(f"{seed} preferences")
    answers: dict[tuple[Source, ...], list[str]] = {}
    for row in rows:
        if row.kind == "evidence":
            answers.setdefault(row.passages, []).append(row.answer)
    made = []
    for row in rows:
        if not row.passages:
            continue
        others = [answer for answer in answers.get(row.passages, ()) if answer != row.answer]
        refuse = row.kind == "evidence" and (not others or rng.random() < 0.5)
        if refuse or others:
            rejected = REFUSAL if refuse else rng.choice(others)
            made.append(Preference(row.question, row.passages, row.answer, rejected, row.documents))
    return made


def write_preferences(path: Path, preferences: Iterable[Preference]) -> None:
    """Write them as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for item in preferences:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def read_preferences(path: Path) -> list[Preference]:
    """Preferences from JSON Lines; `documents` may be left out. Raises TandemError that names a line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TandemError(
            f"The file {path} cannot be read: {error}.", expected="JSON Lines in UTF-8.", do="Check the path."
        ) from error
    return [_read(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]


def _read(line: str, path: Path, number: int) -> Preference:
    try:
        value = json.loads(line)
        passages = tuple(Source(str(item["title"]), str(item["text"])) for item in value["passages"])
        item = Preference(
            str(value["question"]).strip(),
            passages,
            str(value["chosen"]).strip(),
            str(value["rejected"]).strip(),
            tuple(map(str, value.get("documents", ()))),
        )
        if not item.question or not item.chosen or not item.rejected:
            raise ValueError("a question or an answer is missing")
        if item.chosen == item.rejected:
            raise ValueError("chosen and rejected are the same")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TandemError(
            f"Line {number} of {path} is not a preference: {error}.",
            expected='{"question", "passages": [{"title", "text"}], "chosen", "rejected"}.',
            do="Mend that line.",
        ) from None
    return item


def _row(item: Preference, answer: str) -> Row:
    return Row("evidence" if item.passages else "closed-book", item.question, item.passages, answer, item.documents)
