"""What the settings and the question add to the plain prompt."""

from __future__ import annotations

from service.jsonschemas import sketch
from service.question import Question
from service.settings import Settings
from tuner.prompt import PLAIN, Example, Source, Style

TASK_INSTRUCTION = "Do what the user asks, briefly."


def prompt_style(settings: Settings, question: Question, adapter: str | None) -> Style:
    """The style of one prompt.

    An adapter is used with the prompt that it was trained with, and the role and the examples of the settings were not
    part of that: they shape the prompt of the base model alone.
    """
    form = sketch(question.form.schema) if question.form else ""
    if question.task:
        return Style(form=form, instruction=TASK_INSTRUCTION)
    if adapter is not None:
        return Style(form=form) if form else PLAIN
    examples = tuple(
        Example(item.question, item.answer, (Source(item.title, item.passage),) if item.passage else ())
        for item in settings.examples
    )
    return Style(settings.role, examples, form)
