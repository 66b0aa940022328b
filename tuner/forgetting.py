"""What a model still knows after it was tuned: perplexity on a general text, and a few general questions.

Both are fixed, so that figures of different runs can be compared. Perplexity is exp of the mean cross-entropy of a
text's tokens; on a text that has nothing to do with the documents it rises when tuning overwrites what the base knew.
The questions are asked closed book with the service's own prompt; an answer is right when it holds the word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.basemodel import BaseModel
from tuner.objective import autocast
from tuner.prompt import build_prompt
from tuner.quiet import quiet

# Perplexity may rise by so much before it is called forgetting.
MOST_WORSE = 1.10
_MOST_ANSWER_TOKENS = 24
TEXT = (
    "Water freezes at zero degrees Celsius and boils at one hundred degrees at sea level. "
    "The earth turns on its axis once a day and travels around the sun once a year. "
    "Plants take in carbon dioxide and sunlight and give off oxygen. "
    "The heart pumps blood through the body, and the lungs bring oxygen into it. "
    "Iron rusts when it is left in damp air for a long time. "
    "Rivers carry rain and melted snow from the mountains down to the sea. "
    "Most birds build nests in spring, lay eggs, and feed their young until they can fly. "
    "Bread is made from flour, water, salt and yeast, and is baked in a hot oven. "
    "A triangle has three sides, and its angles add up to one hundred and eighty degrees. "
    "Light travels faster than sound, which is why lightning is seen before thunder is heard. "
    "The first printed books made it possible for many more people to learn to read. "
    "Farmers plant wheat in autumn or spring and harvest it in late summer. "
    "Cats sleep for much of the day and hunt at dawn and at dusk. "
    "A library lends books to its readers, who bring them back after a few weeks. "
    "When the moon stands between the sun and the earth, the sun is eclipsed. "
    "Salt dissolves in water, but oil floats on top of it. "
    "The largest ocean on the planet lies between Asia and the Americas. "
    "Trains run on steel rails, and the time of each departure is printed on a board. "
    "Children usually begin school at the age of five, six or seven. "
    "Snow falls when the air is cold enough for drops of water to freeze in the clouds. "
    "A doctor asks about the pain, looks at the patient and decides what to do next. "
    "Gold does not rust, is easy to shape, and has been used for jewellery for thousands of years. "
    "Bees visit flowers to collect nectar and carry pollen from one blossom to another. "
    "A bridge must bear its own weight as well as that of everything that crosses it. "
    "The judge listened to both sides before she announced her decision. "
    "Money that is kept in a bank may earn interest over the years. "
    "Musicians practise the same passage slowly until their fingers know the way. "
    "Deserts are dry, hot by day and often very cold at night. "
    "A magnet has two poles, and equal poles push each other away. "
    "People who live near the coast often eat more fish than people who live inland. "
    "The engine of a car turns the energy of its fuel into movement. "
    "In winter the days are short, and many animals sleep or move to warmer places. "
    "He closed the window, because the wind had begun to blow the papers from the desk. "
    "If two numbers are even, then their sum is even too. "
    "A good map shows roads, rivers, hills and the distance between towns."
)
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "paris"),
    ("What is the capital of Italy?", "rome"),
    ("What is the capital of Japan?", "tokyo"),
    ("What is the capital of Germany?", "berlin"),
    ("Which planet is closest to the sun?", "mercury"),
    ("What is the largest planet of the solar system?", "jupiter"),
    ("What is the largest ocean on earth?", "pacific"),
    ("What gas do plants take in from the air?", "carbon dioxide"),
    ("What is the chemical formula of water?", "h2o"),
    ("What is the chemical symbol of gold?", "au"),
    ("How many days are in a week?", "seven|7"),
    ("How many months are in a year?", "twelve|12"),
    ("How many sides does a triangle have?", "three|3"),
    ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("Who painted the Mona Lisa?", "leonardo|vinci"),
    ("On which continent is Egypt?", "africa"),
    ("On which continent is Brazil?", "america"),
    ("Which language is spoken in Spain?", "spanish"),
    ("What do bees make?", "honey"),
    ("At how many degrees Celsius does water boil?", "100|hundred"),
)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """`perplexity` of TEXT, and how many of QUESTIONS were answered rightly."""

    perplexity: float
    right: int


def measure_knowledge(base: BaseModel, model: Any, precision: str = "auto") -> Knowledge:
    """What `model`, the base with or without something trained, knows now; its mode (train, eval) is put back."""
    training = model.training
    model.eval()
    try:
        with autocast(model, precision):
            return Knowledge(_perplexity(base, model), sum(_is_right(base, model, *item) for item in QUESTIONS))
    finally:
        model.train(training)


def compare_knowledge(before: Knowledge, after: Knowledge) -> Mapping[str, float]:
    """For the card: both measurements, and the ratio of the perplexities."""
    return {
        "perplexity_before": round(before.perplexity, 3),
        "perplexity_after": round(after.perplexity, 3),
        "perplexity_ratio": round(after.perplexity / before.perplexity, 4),
        "questions": len(QUESTIONS),
        "right_before": before.right,
        "right_after": after.right,
    }


def forgetting_warning(compared: Mapping[str, float]) -> str | None:
    """A sentence when the perplexity is more than a tenth worse; None when it is not."""
    if compared["perplexity_ratio"] <= MOST_WORSE:
        return None
    return (
        f"The model has forgotten: its perplexity on a general text rose from {compared['perplexity_before']:g} to"
        f" {compared['perplexity_after']:g}. A lower --learning-rate, a lower --r, fewer --epochs, or other tasks mixed"
        " in with --replay keep more."
    )


def _perplexity(base: BaseModel, model: Any) -> float:
    import torch
    from torch.nn.functional import cross_entropy

    ids = list(base.tokenizer(TEXT)["input_ids"])[: base.window]
    tensor = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=tensor, attention_mask=torch.ones_like(tensor), use_cache=False).logits[0, :-1]
    return math.exp(min(80.0, float(cross_entropy(logits.float(), tensor[0, 1:]))))


def _is_right(base: BaseModel, model: Any, question: str, wanted: str) -> bool:
    import torch

    prompt = build_prompt(base.tokenizer, question, None, limit=base.window - _MOST_ANSWER_TOKENS)
    ids = torch.tensor([prompt.ids], device=model.device)
    with torch.no_grad(), quiet():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_MOST_ANSWER_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(base.eos_ids),
            pad_token_id=min(base.eos_ids),
        )
    answer = base.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).casefold()
    words = {word.strip(".,;:!?\"'()") for word in answer.split()}
    return any(word in words or (" " in word and word in answer) for word in wanted.split("|"))
