"""A cross-encoder that reads a question with a passage and says how likely the passage holds the answer.

Input "[CLS] question [SEP] title: text [SEP]" (sentence pairs of BERT, Devlin et al. 2019, arXiv 1810.04805), output
one logit. q questions, k passages of one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from indexer.errors import TandemError
from tuner.objective import autocast
from tuner.prompt import Source
from tuner.quiet import quiet

# Tokens of question and passage together; chunks of the default size are shorter. Attention grows with the square.
MOST_TOKENS = 256
# Raise it when `encode` makes other ids of the same strings: models trained before are then refused.
FORM = "1"
# Encoders; a causal model would be read from its last token, which padding moves.
FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "camembert", "deberta-v2", "modernbert")


class AnswerabilityModel:
    """Judges passages. Thread-safe. Raises TandemError for a folder that holds no such model."""

    def __init__(self, folder: Path, *, device: str = "cpu", name: str = "") -> None:
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        try:
            family = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type
            if family not in FAMILIES:
                raise ValueError(f"its family is {family!r}")
            with quiet():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
                self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    num_labels=1,
                    problem_type="multi_label_classification",
                )
        except (OSError, ValueError, KeyError) as error:
            raise TandemError(
                f"The model {name or folder} cannot read a question with a passage: {error}",
                expected=f"An encoder as safetensors, with its tokenizer, of one of: {', '.join(FAMILIES)}.",
                do="Name another one.",
                code="unavailable",
            ) from error
        positions = int(getattr(self.model.config, "max_position_embeddings", 0) or MOST_TOKENS)
        # RoBERTa's first position is the one after its padding token.
        self._most = min(MOST_TOKENS, positions - 2)
        self._lock = Lock()
        self.model.to(device)
        self.model.eval()

    def encode(self, question: str, sources: Sequence[Source]) -> list[dict[str, list[int]]]:
        """Token ids of the question with each passage, neither padded nor over the most tokens."""
        encoded = self._tokens(question, sources)
        return [{name: values[place] for name, values in encoded.items()} for place in range(len(sources))]

    def locate(self, question: str, source: Source, span: tuple[int, int]) -> tuple[int, int] | None:
        """The first and the last token of characters of the passage's text, as `encode` has them; None if cut off."""
        encoded, shift = self._tokens(question, [source]), len(_shown(source)) - len(source.text)
        first = encoded.char_to_token(0, span[0] + shift, 1)
        last = encoded.char_to_token(0, span[1] - 1 + shift, 1)
        return None if first is None or last is None else (first, last)

    def _tokens(self, question: str, sources: Sequence[Source]) -> Any:
        texts = [_shown(source) for source in sources]
        # The tokenizer keeps its truncation in itself, so two threads may not change it at once.
        with self._lock:
            return self.tokenizer([question] * len(texts), texts, truncation="longest_first", max_length=self._most)

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """One padded batch of tensors."""
        with self._lock:
            return dict(self.tokenizer.pad(list(rows), return_tensors="pt"))

    def score(self, question: str, sources: Sequence[Source]) -> list[float]:
        """(k,) how likely each passage holds the answer, 0 to 1."""
        import torch

        if not sources:
            return []
        features = self.collate(self.encode(question, sources))
        with torch.inference_mode(), autocast(self.model, "auto"):
            logits = self.model(**{name: value.to(self.model.device) for name, value in features.items()}).logits
        return [float(value) for value in torch.sigmoid(logits.float())[:, 0]]

    def judge(self, question: str, sources: Sequence[Source]) -> float:
        """How likely one of the passages holds the answer: the best of them decides; 0 without any."""
        return max(self.score(question, sources), default=0.0)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), config and tokenizer to a folder that is there."""
        with quiet():
            self.model.save_pretrained(folder, safe_serialization=True)
            self.tokenizer.save_pretrained(folder)


def _shown(source: Source) -> str:
    return f"{source.title}: {source.text}" if source.title else source.text
