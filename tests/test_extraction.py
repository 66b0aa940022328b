"""Questions that rules make of sentences: each rule on one sentence, and what no rule may ask about."""

from __future__ import annotations

import pytest

from tuner.extraction import Draft, drafts, sentences


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("The tower was built in 1889 by Eiffel.", "In which year was the tower built?", "1889"),
        ("The flag was added in version 3.2.", "In which version was the flag added?", "version 3.2"),
        ("The command has been removed in Python 3.12.", "In which version was the command removed?", "Python 3.12"),
        ("Gates are deprecated in 2.1 of the tool.", "In which version are Gates deprecated?", "2.1"),
        ("The oven has two doors.", "How many doors does the oven have?", "two"),
        ("The scheduler supports 3 modes of work.", "How many modes does the scheduler support?", "3"),
        (
            "The index cannot be moved because its paths are absolute.",
            "Why can't the index be moved?",
            "its paths are absolute",
        ),
        ("`timeout` defaults to 30 seconds.", "What does `timeout` default to?", "30 seconds"),
        ("By default, the port is 8000.", "What is the port by default?", "8000"),
        ("Logs are stored in /var/log/tandem.", "Where are Logs stored?", "in /var/log/tandem"),
        (
            "The cache is deleted when the process ends, and made again.",
            "When is the cache deleted?",
            "when the process ends",
        ),
        ("A token bucket is used to limit requests.", "What is a token bucket used for?", "to limit requests"),
        ("The order is determined by the file name.", "What is the order determined by?", "the file name"),
        (
            "The option `--watch` lets you edit files meanwhile.",
            "What does the option `--watch` let you do?",
            "edit files meanwhile",
        ),
        (
            "The policy allows users to read logs.",
            "What does the policy allow users to do?",
            "read logs",
        ),
        ("Keys must be longer than 16 characters.", "What must Keys be?", "longer than 16 characters"),
        ("To undo your change, run `git revert`.", "How do I undo my change?", "run `git revert`"),
        ("You can list files by using `ls`.", "How can I list files?", "by using `ls`"),
        (
            "If your disk is full, the run stops with an error.",
            "What happens if my disk is full?",
            "the run stops with an error",
        ),
        ("A row consists of a question with passages.", "What does a row consist of?", "a question with passages"),
        ("NF4 means 4-bit NormalFloat.", "What does NF4 mean?", "4-bit NormalFloat"),
        ("RAFT stands for retrieval-augmented tuning.", "What does RAFT stand for?", "retrieval-augmented tuning"),
        ("The option `-k` sets the number of passages.", "What does the option `-k` set?", "the number of passages"),
        ("The melting point of iron is 1538 degrees.", "What is the melting point of iron?", "1538 degrees"),
    ],
)
def test_each_rule_asks_about_a_plain_sentence(sentence: str, question: str, answer: str) -> None:
    text = f"# Heading\n\n{sentence} It is very large."
    assert drafts(text) == [Draft(question, answer, sentence)]
    assert answer in sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "It is a large oven with doors.",
        "This option sets the number of passages.",
        "The oven is not heated by wood.",
        "When the oven is hot the bread rises.",
        "The one that reads passages is the model.",
        "Is the oven hot enough for it?",
        "| The port | is 8000 | and more | here |",
        "If it is missing, the run stops with an error.",
        "When used in a loop, the value is read again.",
        "If the disk is full, it stops with an error.",
        "The following command lists all files here.",
        "Currently the oven uses wood of the forest.",
        "Options ¶ The flag sets the number of rows.",
        "The file must be removed by hand.",
        "Old rows are removed in 30 seconds.",
        "The files are released in March 2021.",
    ],
)
def test_sentences_that_are_not_plain_are_passed_over(sentence: str) -> None:
    assert drafts(sentence) == []


def test_sentences_are_spans_of_the_text() -> None:
    text = "# Title\n\nThe first one is here. The second\nline is there (as well).\n\n- A list item ends too.\nNo end"
    found = list(sentences(text))
    assert found == ["The first one is here.", "The second\nline is there (as well).", "A list item ends too."]
    assert all(span in text for span in found)
