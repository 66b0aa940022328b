"""Pointing at the answer, the second task of an encoder that learns to judge."""

from pathlib import Path

import numpy as np
import pytest
from test_answerability import WORDS, save_encoder

from tuner.answerability_model import AnswerabilityModel
from tuner.prompt import Source


def test_the_tokens_of_an_answer_are_those_that_are_read(tmp_path: Path) -> None:
    model = AnswerabilityModel(save_encoder(tmp_path / "small"))
    source = Source("title", "no filler yes no " + "filler " * 500 + "yes")
    ids = model.encode("who has it ?", [source])[0]["input_ids"]
    first, last = model.locate("who has it ?", source, (3, 13)) or (0, 0)
    assert [WORDS[token] for token in ids[first : last + 1]] == ["filler", "yes"]
    end = len(source.text)
    assert model.locate("who has it ?", source, (end - 3, end)) is None


def test_what_pointing_loses_by_hand(tmp_path: Path) -> None:
    import torch

    from tuner.pointing import NO_ANSWER, NOWHERE, Pointing

    model = AnswerabilityModel(save_encoder(tmp_path / "small"))
    task = Pointing(model.model).eval()
    rows = [model.encode("who ?", [Source("", text)])[0] for text in ("yes", "no filler filler", "filler yes")]
    labels, places = [1.0, 0.0, 1.0], [[4, 4], [NO_ANSWER, NO_ANSWER], [NOWHERE, NOWHERE]]
    with torch.no_grad():
        loss = task(model.collate(rows), torch.tensor(labels), torch.tensor(places))["loss"]
        expected, pointed = 0.0, 0.0
        for row, label, place in zip(rows, labels, places, strict=True):  # one at a time: padding changes nothing
            read = model.model(**model.collate([row]), output_hidden_states=True)
            chance = 1 / (1 + np.exp(-float(read.logits)))
            expected -= np.log(chance if label else 1 - chance) / 3
            points = (read.hidden_states[-1][0] @ task.pointer.weight.T + task.pointer.bias).numpy().astype(float)
            shares = np.exp(points) / np.exp(points).sum(0)
            if place[0] != NOWHERE:
                pointed -= np.log(shares[place[0], 0]) + np.log(shares[place[1], 1])
    assert float(loss) == pytest.approx(expected + pointed / 4, abs=1e-4)
