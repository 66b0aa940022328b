import re
import threading

import pytest
from conftest import MakeService
from fakes import FixedAdapters, ScriptedGenerator, wait_until

from indexer.errors import TandemError
from indexer.publish import rollback
from service.answer import Answer
from service.answering import Answerer
from service.question import Question
from tuner.prompt import REFUSAL

TIDES = "How often does the moon raise the tides of the ocean?"
TWICE = "The moon raises the tides twice a day [1]."


def parts(answerer: Answerer, question: Question, cancel: threading.Event | None = None) -> tuple[list[str], Answer]:
    *texts, answer = answerer.stream(question, cancel)
    assert isinstance(answer, Answer) and all(isinstance(text, str) for text in texts)
    return [str(text) for text in texts], answer


def test_an_answer_from_passages(make_service: MakeService) -> None:
    generator = ScriptedGenerator(TWICE)
    answer = make_service(generator).answerer.answer(Question(TIDES))
    assert (answer.answer, answer.refused, answer.refusal_reason) == (TWICE, False, None)
    assert (answer.mode, answer.adapter, answer.finish_reason) == ("rag", None, "stop")
    (citation,) = answer.citations
    assert citation.passage.path == "tides.md"
    assert citation.quote == "The moon raises the tides of the ocean twice a day."
    assert answer.passages[0].path == "tides.md"
    assert answer.index_generation == 1
    assert answer.completion_tokens == len(TWICE.split())
    assert answer.prompt_tokens == len(generator.prompts[0].ids)
    assert answer.first_token_ms is not None
    assert 0 < answer.retrieve_ms <= answer.first_token_ms <= answer.total_ms
    assert answer.relevance is not None and answer.relevance > 0.35
    shown = generator.prompts[0].messages[-1]["content"]
    assert shown.endswith(f"Question: {TIDES}")
    for passage in answer.passages:
        assert f"[{passage.rank}] {passage.chunk.context}: {' '.join(passage.chunk.text.split())}" in shown


def test_what_is_streamed_is_the_answer(make_service: MakeService) -> None:
    script = f"{TWICE} The moon is made of cheese. Spring tides come at full moon.[7] The tides are 99 metres high."
    answerer = make_service(script).answerer
    texts, answer = parts(answerer, Question(TIDES))
    assert texts == [TWICE, " Spring tides come at full moon [1]."]
    assert "".join(texts) == answer.answer
    assert len(answer.citations) == 2
    whole = answerer.answer(Question(TIDES))
    assert (whole.answer, whole.citations) == (answer.answer, answer.citations)


def test_a_marker_split_over_pieces_is_one_marker(make_service: MakeService) -> None:
    pieces = [
        "The moon raises",
        " the tides",
        " twice a day.",
        " [",
        "1",
        "]",
        " Spring tides come at full moon. [",
        "4",
        "2]",
    ]
    texts, answer = parts(make_service(ScriptedGenerator(pieces)).answerer, Question(TIDES))
    assert texts == [TWICE, " Spring tides come at full moon [1]."]
    assert [citation.n for citation in answer.citations] == [1, 1]


def test_a_sentence_is_sent_before_the_model_has_finished(make_service: MakeService) -> None:
    generator = ScriptedGenerator(f"{TWICE} Spring tides come at full moon.")
    stream = make_service(generator).answerer.stream(Question(TIDES))
    assert next(stream) == TWICE
    assert generator.ends == [], "the model is still speaking"
    list(stream)
    assert generator.ends == ["stop"]


def test_a_repeated_sentence_is_said_once(make_service: MakeService) -> None:
    answer = make_service(f"{TWICE} {TWICE} {TWICE}").answerer.answer(Question(TIDES))
    assert answer.answer == TWICE
    assert len(answer.citations) == 1


def test_nothing_relevant_is_refused_without_the_model(make_service: MakeService) -> None:
    generator = ScriptedGenerator(TWICE)
    texts, answer = parts(make_service(generator).answerer, Question("Qubits entangle photons?"))
    assert texts == [REFUSAL]
    assert (answer.answer, answer.refused, answer.refusal_reason) == (REFUSAL, True, "nothing_relevant")
    assert answer.citations == ()
    assert len(answer.passages) == 4, "what was searched is shown"
    assert generator.prompts == []
    assert (answer.completion_tokens, answer.first_token_ms) == (0, None)


@pytest.mark.parametrize("script", [REFUSAL, "The passages do not mention it.", f"{REFUSAL} But {TWICE}"])
def test_a_refusal_of_the_model_has_no_citations_and_ends_the_generation(
    make_service: MakeService, script: str
) -> None:
    generator = ScriptedGenerator(f"{script} And then on and on. And on. Without end.")
    texts, answer = parts(make_service(generator).answerer, Question(TIDES))
    assert texts == [REFUSAL]
    assert (answer.refused, answer.refusal_reason, answer.citations) == (True, "model_refused", ())
    assert generator.ends == ["closed"], "what follows a refusal is not waited for"


def test_a_refusal_after_a_supported_sentence_is_left_out(make_service: MakeService) -> None:
    answer = make_service(f"{TWICE} {REFUSAL}").answerer.answer(Question(TIDES))
    assert (answer.answer, answer.refused) == (TWICE, False)


@pytest.mark.parametrize(
    "script", ["", " ", "The moon is made of green cheese [1].", "[1] [2]", "The tides come 7 times."]
)
def test_an_answer_without_support_is_a_refusal(make_service: MakeService, script: str) -> None:
    texts, answer = parts(make_service(script).answerer, Question(TIDES))
    assert texts == [answer.answer] == [REFUSAL]
    assert (answer.refused, answer.refusal_reason, answer.citations) == (True, "unsupported", ())


@pytest.mark.parametrize("mode", ["base", "tuned"])
def test_closed_book_answers_have_neither_passages_nor_markers(make_service: MakeService, mode: str) -> None:
    generator = ScriptedGenerator("The moon [1] is made of cheese [2, 3]. It is [1[2]] round.\n[1] [9")
    answerer = make_service(generator, FixedAdapters(["sailor"], "sailor")).answerer
    texts, answer = parts(answerer, Question(TIDES, mode=mode))
    assert answer.answer == "".join(texts) == "The moon is made of cheese. It is round."
    assert (answer.passages, answer.citations, answer.relevance, answer.index_generation) == ((), (), None, None)
    assert answer.adapter == ("sailor" if mode == "tuned" else None)
    assert "[1]" not in generator.prompts[0].messages[-1]["content"]


def test_closed_book_refusal(make_service: MakeService) -> None:
    answer = make_service("I don't know. It may be green.").answerer.answer(Question(TIDES, mode="base"))
    assert (answer.answer, answer.refusal_reason) == (REFUSAL, "model_refused")


@pytest.mark.parametrize(
    ("mode", "named", "active", "expected"),
    [
        (None, None, None, ("rag", None)),
        (None, None, "a", ("rag+tuned", "a")),
        (None, "b", None, ("rag+tuned", "b")),
        ("auto", "b", "a", ("rag+tuned", "b")),
        ("rag", None, "a", ("rag", None)),
        ("base", None, "a", ("base", None)),
        ("tuned", None, "a", ("tuned", "a")),
        ("rag+tuned", "b", "a", ("rag+tuned", "b")),
    ],
)
def test_the_mode_and_the_adapter_that_answer(
    make_service: MakeService, mode: str | None, named: str | None, active: str | None, expected: tuple[str, str | None]
) -> None:
    generator, adapters = ScriptedGenerator(TWICE), FixedAdapters(["a", "b"], active)
    answer = make_service(generator, adapters).answerer.answer(Question(TIDES, mode=mode, adapter=named))
    assert (answer.mode, answer.adapter) == expected
    assert generator.adapters == [expected[1]]
    assert adapters.prepared == ([expected[1]] if expected[1] else [])
    assert bool(answer.passages) == expected[0].startswith("rag")


def test_the_mode_of_the_settings_is_the_default(make_service: MakeService) -> None:
    assert make_service("Cheese.", mode="base").answerer.answer(Question(TIDES)).mode == "base"


@pytest.mark.parametrize(
    ("question", "code", "message"),
    [
        (Question(""), "invalid_request", "empty"),
        (Question(" \n\x00 "), "invalid_request", "empty"),
        (Question("x" * 51), "too_large", "51 characters"),
        (Question("Hm?", mode="oracle"), "invalid_request", "no mode 'oracle'"),
        (Question("Hm?", mode="tuned"), "conflict", "needs an adapter"),
        (Question("Hm?", mode="rag", adapter="a"), "invalid_request", "uses no adapter"),
        (Question("Hm?", adapter="missing"), "not_found", "no adapter 'missing'"),
        (Question("Hm?", k=0), "invalid_request", "k is 0"),
        (Question("Hm?", k=101), "invalid_request", "k is 101"),
        (Question("Hm?", max_tokens=0), "invalid_request", "max_tokens is 0"),
        (Question("Hm?", max_tokens=4097), "invalid_request", "max_tokens is 4097"),
        (Question("Hm?", mode="base", max_tokens=4096), "too_large", "max_tokens"),
    ],
)
def test_what_cannot_be_asked(make_service: MakeService, question: Question, code: str, message: str) -> None:
    generator = ScriptedGenerator(TWICE, window=2048)
    answerer = make_service(generator, FixedAdapters(["a"]), question_chars=50).answerer
    with pytest.raises(TandemError, match=re.escape(message)) as caught:
        answerer.answer(question)
    assert caught.value.code == code
    assert generator.prompts == []
    assert len(answerer.admission) == 0


def test_k_and_max_tokens_are_used(make_service: MakeService) -> None:
    generator = ScriptedGenerator(f"{TWICE} Spring tides come at full moon.")
    answer = make_service(generator).answerer.answer(Question(TIDES, k=2, max_tokens=9))
    assert len(answer.passages) == 2
    assert (answer.completion_tokens, answer.finish_reason) == (9, "length")
    assert answer.answer == "The moon raises the tides twice a day [1]."


def test_passages_that_do_not_fit_are_dropped_and_cannot_be_cited(make_service: MakeService) -> None:
    script = f"{TWICE} Marmots hide in burrows."
    wide = make_service(script).answerer.answer(Question(TIDES))
    assert wide.answer == f"{TWICE} Marmots hide in burrows [4]."
    narrow = make_service(script, prompt_tokens=128).answerer.answer(Question(TIDES))
    assert narrow.passages == wide.passages[:3]
    assert narrow.answer == TWICE
    assert narrow.prompt_tokens <= 128 < wide.prompt_tokens


def test_a_question_that_leaves_no_room_for_a_passage(make_service: MakeService) -> None:
    long = TIDES + " the moon tides" * 24
    with pytest.raises(TandemError, match="one passage take more than 128 tokens"):
        make_service(TWICE, prompt_tokens=128).answerer.answer(Question(long))


def test_cancel_ends_it_with_what_was_made(make_service: MakeService) -> None:
    generator = ScriptedGenerator(f"{TWICE} " + "Spring tides come at full moon. " * 500, delay=0.01)
    cancel = threading.Event()
    stream = make_service(generator).answerer.stream(Question(TIDES), cancel)
    assert next(stream) == TWICE
    cancel.set()
    *_, answer = stream
    assert isinstance(answer, Answer)
    assert (answer.answer, answer.finish_reason, answer.refused) == (TWICE, "cancelled", False)
    assert generator.ends == ["cancelled"]
    assert generator.spoken < 20


def test_cancel_before_the_first_sentence_is_no_refusal(make_service: MakeService) -> None:
    cancel = threading.Event()
    cancel.set()
    texts, answer = parts(make_service(TWICE).answerer, Question(TIDES), cancel)
    assert texts == []
    assert (answer.answer, answer.refused, answer.finish_reason) == ("", False, "cancelled")


def test_a_stream_that_is_dropped_stops_the_model_and_frees_the_queue(make_service: MakeService) -> None:
    generator = ScriptedGenerator(f"{TWICE} " + "Spring tides come at full moon. " * 500)
    answerer = make_service(generator).answerer
    stream = answerer.stream(Question(TIDES))
    next(stream)
    assert len(answerer.admission) == 1
    stream.close()  # type: ignore[attr-defined]
    assert generator.ends == ["closed"]
    assert len(answerer.admission) == 0


def test_a_broken_model_frees_the_queue(make_service: MakeService) -> None:
    answerer = make_service(ScriptedGenerator(TWICE, fail_after=2)).answerer
    with pytest.raises(RuntimeError):
        answerer.answer(Question(TIDES))
    assert len(answerer.admission) == 0


def test_one_question_at_a_time_and_a_full_queue_is_told(make_service: MakeService) -> None:
    generator = ScriptedGenerator(f"{TWICE} " + "Spring tides come at full moon. " * 5, delay=0.01)
    answerer = make_service(generator, queue=2).answerer
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(answerer.answer(Question(TIDES, mode="base")))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answerer.admission) == 3)
    with pytest.raises(TandemError, match="2 questions are waiting") as caught:
        answerer.answer(Question(TIDES))
    assert caught.value.code == "unavailable"
    for thread in threads:
        thread.join()
    assert len(answers) == 3 and len({answer.answer for answer in answers}) == 1
    assert generator.most_busy == 1


def test_without_any_passage_rag_refuses_whatever_the_gate(make_service: MakeService) -> None:
    generator = ScriptedGenerator("Cheese.")
    service = make_service(generator, min_relevance=-1)
    with service.store.connection() as connection:
        connection.execute("UPDATE chunks SET died = 1")
    answer = service.answerer.answer(Question(TIDES, mode="rag"))
    assert (answer.refused, answer.citations, generator.prompts) == (True, (), [])


def test_an_index_of_another_generation_is_named(make_service: MakeService) -> None:
    service = make_service(TWICE)
    with pytest.raises(TandemError, match="no previous generation"):
        rollback(service.store)
    assert service.answerer.answer(Question(TIDES)).index_generation == service.ready() == 1


def test_marks_say_where_each_marker_stands(make_service: MakeService) -> None:
    answer = make_service(f"{TWICE} Marmots hide in burrows. Spring tides come at full moon.").answerer.answer(
        Question(TIDES)
    )
    shown = [(answer.answer[mark.start : mark.end], mark.citation.passage.path) for mark in answer.marks]
    assert shown == [("[1]", "tides.md"), ("[4]", "notes/<b>marmot.txt"), ("[1]", "tides.md")]
    assert [mark.start for mark in answer.marks] == [match.start() for match in re.finditer(r"\[\d\]", answer.answer)]
    assert make_service(REFUSAL).answerer.answer(Question(TIDES)).marks == ()


def test_the_role_and_examples_are_for_the_base_model_alone(make_service: MakeService) -> None:
    generator = ScriptedGenerator(TWICE)
    examples = [{"question": "Who digs?", "answer": "Moles dig [1].", "title": "Moles", "passage": "Moles dig."}]
    options = {"role": "You are a sailor.", "examples": examples}
    answerer = make_service(generator, FixedAdapters(["a"]), **options).answerer
    plain = make_service(other := ScriptedGenerator(TWICE), FixedAdapters(["a"])).answerer
    answerer.answer(Question(TIDES, mode="rag"))
    shown = generator.prompts[0].messages
    assert shown[0]["content"].startswith("You are a sailor. Answer the question")
    assert [message["content"] for message in shown[1:3]] == [
        "[1] Moles: Moles dig.\nQuestion: Who digs?",
        "Moles dig [1].",
    ]
    answerer.answer(Question(TIDES, adapter="a"))
    plain.answer(Question(TIDES, adapter="a"))
    assert generator.prompts[1].messages == other.prompts[0].messages
