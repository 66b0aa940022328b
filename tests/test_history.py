"""Follow-up questions are made to stand alone, and others are left as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MakeService
from fakes import ScriptedGenerator

from indexer.chunking import ChunkSize
from indexer.embedding import SentenceTransformerEmbedder
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights
from service.history import FOOTER, Turn, bounded, leans, standalone
from service.question import Question


def turns(*texts: str) -> tuple[Turn, ...]:
    """A conversation that begins with the user."""
    return tuple(Turn("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts))


@pytest.mark.parametrize(
    ("before", "question", "expected"),
    [
        (turns("What is QLoRA?", "A method."), "What does it add?", "What does QLoRA add?"),
        (turns("What is the notice period?", "4 weeks."), "How long is it?", "How long is the notice period?"),
        (turns("What is a chunk?", "A span."), "What is its size?", "What is a chunk's size?"),
        (turns("What is an adapter?", "LoRA."), "How large can this get?", "How large can an adapter get?"),
        (
            turns("What is QLoRA?", "A.", "What does it add?", "B."),
            "How much memory does it need?",
            "How much memory does QLoRA need?",
        ),
        (
            turns("How often does the moon raise the tides?", "Twice."),
            "Why?",
            "How often does the moon raise the tides? Why?",
        ),
        (
            turns("What is the notice period for staff?", "4 weeks."),
            "And for contractors?",
            "What is the notice period for staff? And for contractors?",
        ),
        (turns("Does Tandem use FAISS?", "Yes."), "Is it fast?", "Does Tandem use FAISS? Is it fast?"),
        (turns("How do I index a folder?", "So."), "How many pages?", "How do I index a folder? How many pages?"),
    ],
)
def test_a_follow_up_is_rewritten(before: tuple[Turn, ...], question: str, expected: str) -> None:
    assert standalone(question, before) == expected


@pytest.mark.parametrize(
    "question",
    [
        "What is FAISS?",
        "Is it possible to change the port?",
        "How long does it take to index a folder?",
        "Which file holds the settings that I change?",
        "Who writes adapter cards?",
        "Where are access keys stored?",
        "FAISS recall",
        "There is an error in line 5, what now?",
    ],
)
def test_a_question_that_stands_alone_is_left_alone(question: str) -> None:
    assert not leans(question)
    assert standalone(question, turns("What is QLoRA?", "A method.")) == question


def test_without_turns_before_nothing_is_added() -> None:
    assert standalone("What does it do?", ()) == "What does it do?"


def test_what_is_read_of_a_conversation_is_bounded() -> None:
    said = turns(
        "One?", f"First [1].{FOOTER}1. [A](http://x)", "Two?", "", "Three?", "Third\x00 answer.", "Four?", "x" * 50
    )
    kept = bounded(said, 4, 10)
    assert [turn.content for turn in kept] == ["Three?", "Third answ", "Four?", "x" * 10]
    assert [turn.content for turn in bounded(said, 100, 100)][:3] == ["One?", "First.", "Two?"]
    assert bounded(said, 0, 10) == ()
    # An answer without its question says nothing.
    assert [turn.content for turn in bounded(said, 3, 10)] == ["Four?", "x" * 10]


def test_what_is_searched_is_told_and_asked(make_service: MakeService) -> None:
    generator = ScriptedGenerator("Iron melts at 1538 degrees Celsius.")
    answerer = make_service(generator).answerer
    history = turns("What is iron?", "A metal.")
    answer = answerer.answer(Question("At how many degrees Celsius does it melt?", mode="rag", history=history))
    assert answer.searched_for == "At how many degrees Celsius does iron melt?"
    assert answer.passages[0].path == "iron.txt"
    assert answer.answer == "Iron melts at 1538 degrees Celsius [1]."
    prompt = generator.prompts[0].messages
    assert prompt[-1]["content"].endswith(f"Question: {answer.searched_for}")
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_closed_book_the_model_sees_the_turns(make_service: MakeService) -> None:
    generator = ScriptedGenerator("It melts.")
    answerer = make_service(generator, history=2).answerer
    history = turns("Old?", "Gone.", "What is iron?", "A metal [2].")
    answer = answerer.answer(Question("Does it melt?", mode="base", history=history))
    assert answer.searched_for is None
    assert [message["content"] for message in generator.prompts[0].messages][1:] == [
        "What is iron?",
        "A metal.",
        "Question: Does it melt?",
    ]


# (the question before, the follow-up, a page of the manual that answers it)
CONVERSATIONS = [
    ("What is QLoRA?", "How much memory does it save?", {"how-tuning-works.md", "models-and-weights.md"}),
    ("What is the setting min_relevance?", "What if it is raised?", {"configuration.md", "citations-and-refusals.md"}),
    ("What does GET /readyz answer?", "And while the model is being loaded?", {"http-api.md", "operations.md"}),
    ("What is an adapter card?", "What does it hold?", {"glossary.md", "how-tuning-works.md", "models-and-weights.md"}),
    ("What is the prompt fingerprint?", "Why does it exist?", {"prompts.md"}),
    ("Which keys does Tandem know?", "How are they stored?", {"security.md", "configuration.md", "operations.md"}),
    ("What is chain-of-thought prompting?", "Does Tandem use it?", {"prompts.md"}),
    ("What is BM25?", "Who proposed it?", {"glossary.md", "how-retrieval-works.md"}),
    ("What does tandem doctor do?", "When should I run it?", {"command-line.md", "troubleshooting.md"}),
    ("What is role prompting?", "What does it change?", {"prompts.md"}),
]  # fmt: skip


@pytest.mark.slow
def test_rewriting_finds_what_a_follow_up_alone_does_not(weights_cache: Path, tmp_path: Path) -> None:
    manual = Path(__file__).parents[1] / "corpora" / "manual"
    embedder = SentenceTransformerEmbedder(embedder_weights("bundled", weights_cache), device="cpu")
    store = Store(tmp_path / "home")
    sync(store, [manual], embedder, ChunkSize(160, 24))
    retriever = Retriever(store, embedder)

    def found(question: str, pages: set[str]) -> bool:
        return bool({passage.path for passage in retriever.retrieve(question, 2).passages} & pages)

    alone = sum(found(follow_up, pages) for _, follow_up, pages in CONVERSATIONS)
    rewritten = sum(found(standalone(follow_up, turns(q, "So.")), pages) for q, follow_up, pages in CONVERSATIONS)
    store.close()
    print(f"found among the first two passages: {alone} alone, {rewritten} rewritten, of {len(CONVERSATIONS)}")
    assert rewritten >= 9 and rewritten >= alone + 2
