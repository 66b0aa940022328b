"""Kept texts: the same as generated ones, found for the same prompt only, gone when what they came from is gone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from small_models import save_adapter, save_small_model

from service.answercache import CachedGenerator
from tuner.basemodel import BaseModel, load_base_model
from tuner.prompt import Prompt

PROMPT = Prompt(tuple(range(20, 60)), (), 0)


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return load_base_model(str(save_small_model(tmp_path / "model")), cache=tmp_path, device="cpu")


def test_the_same_prompt_is_generated_once(base: BaseModel) -> None:
    cached = CachedGenerator(base, entries=2)
    first = list(cached.generate(PROMPT, max_tokens=8))
    assert list(cached.generate(PROMPT, max_tokens=8)) == first
    assert (cached.hits, cached.misses) == (1, 1)
    for other in (Prompt(PROMPT.ids[:-1], (), 0), Prompt(PROMPT.ids[1:], (), 0)):
        list(cached.generate(other, max_tokens=8))
    list(cached.generate(PROMPT, max_tokens=8))
    assert (cached.hits, cached.misses) == (1, 4)  # two others were asked for since
    shorter = list(cached.generate(PROMPT, max_tokens=2))
    assert (cached.hits, shorter[-1].completion_tokens) == (1, 2)


def test_no_entries_keep_nothing(base: BaseModel) -> None:
    cached = CachedGenerator(base, entries=0)
    for _ in range(2):
        list(cached.generate(PROMPT, max_tokens=2))
    assert (cached.hits, cached.misses) == (0, 2)


def test_what_was_cut_off_is_not_kept(base: BaseModel) -> None:
    cached = CachedGenerator(base, entries=9)
    cancel = threading.Event()
    for _ in cached.generate(PROMPT, max_tokens=50, cancel=cancel):
        cancel.set()
    running = cached.generate(PROMPT, max_tokens=50)
    next(running)
    running.close()  # type: ignore[attr-defined]
    whole = list(cached.generate(PROMPT, max_tokens=50))
    assert (cached.hits, whole[-1].finish_reason in ("stop", "length")) == (0, True)


def test_another_adapter_under_the_same_name_answers_itself(base: BaseModel, tmp_path: Path) -> None:
    cached = CachedGenerator(base, entries=9)
    texts = []
    for seed in (1, 2):
        cached.register("a", save_adapter(tmp_path / str(seed), base, seed=seed))
        texts.append([piece.text for piece in cached.generate(PROMPT, max_tokens=8, adapter="a")])
    bare = [piece.text for piece in cached.generate(PROMPT, max_tokens=8)]
    assert cached.hits == 0
    assert texts[0] != texts[1] != bare


def test_a_new_generation_of_the_index_empties_it(base: BaseModel) -> None:
    cached = CachedGenerator(base, entries=9)
    for generation, hits in ((1, 0), (1, 1), (2, 1), (2, 2), (1, 2)):
        cached.see(generation)
        list(cached.generate(PROMPT, max_tokens=3))
        assert cached.hits == hits


def test_a_text_that_was_begun_before_the_change_is_not_kept(base: BaseModel) -> None:
    cached = CachedGenerator(base, entries=9)
    cached.see(1)
    running = iter(cached.generate(PROMPT, max_tokens=6))
    next(running)
    cached.see(2)
    list(running)
    list(cached.generate(PROMPT, max_tokens=6))
    assert cached.hits == 0
