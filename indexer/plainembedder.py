"""Embedders of the usual form, run without sentence-transformers: an encoder whose token vectors are averaged.

Importing that library takes seconds and 300 MB, because it brings what it trains with. A folder that is made of a
known encoder, the mean of its token vectors (or the first of them) and nothing else, is nearly every published one;
its float32 vectors come out the same, bit for bit. Any other folder is left to the library (indexer/embedding.py).

Notation: n texts, t tokens of the longest, d dimensions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Pooling = Literal["mean", "cls"]

# Encoders whose model class in transformers does what sentence-transformers makes of them.
ENCODERS = frozenset({"bert", "distilbert", "mpnet", "roberta", "xlm-roberta"})
# What the encoder's own settings may say without changing a vector.
_AS_USUAL: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    "do_lower_case": False,
}
_TINY = 1e-9  # as the library has it; no text is without tokens


@dataclass(frozen=True, slots=True)
class Form:
    """What a folder's settings come to. `window` is in tokens; None leaves it to the tokenizer and the encoder.

    `to_unit` is whether the folder itself ends with vectors of unit length; twice over, last digits differ.
    """

    pooling: Pooling
    window: int | None
    to_unit: bool = True


def usual_form(folder: Path) -> Form | None:
    """The form of the embedder in `folder`; None when it is another one, or its settings cannot be read."""
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0]["path"]:
            return None
        if json.loads((folder / "config.json").read_text("utf-8")).get("model_type") not in ENCODERS:
            return None
        prompts = _settings(folder / "config_sentence_transformers.json").get("prompts") or {}
        encoder = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))
        window = encoder.pop("max_seq_length", None)
        if any(prompts.values()) or any(key not in _AS_USUAL or _AS_USUAL[key] != encoder[key] for key in encoder):
            return None
        pooling = _pooling(json.loads((folder / modules[1]["path"] / "config.json").read_text("utf-8")))
        return None if pooling is None else Form(pooling, None if window is None else int(window), len(kinds) == 3)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _settings(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _pooling(settings: dict[str, Any]) -> Pooling | None:
    """Named, or one of several flags in folders of older versions."""
    flags = {name.removeprefix("pooling_mode_") for name, on in settings.items() if name[:13] == "pooling_mode_" and on}
    named = settings.get("pooling_mode", sorted(flags))
    modes = [named] if isinstance(named, str) else list(named)
    found: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
    return found.get(modes[0]) if len(modes) == 1 else None


class PlainEmbedder:
    """A loaded embedder of the usual form. Raises OSError, ValueError or KeyError when it does not load."""

    def __init__(self, folder: Path, form: Form, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
        model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, **local)
        self._model = model.to(device)
        self._form = form
        self.device = self._model.device
        self.dimension = int(model.config.hidden_size)
        self.window = form.window or int(min(self.tokenizer.model_max_length, model.config.max_position_embeddings))

    def __call__(self, features: dict[str, Any]) -> Any:
        """(n, t) `input_ids`, `attention_mask` and what else the encoder reads -> (n, d) vectors of any length."""
        import torch

        tokens = self._model(**features).last_hidden_state
        vectors = tokens[:, 0] if self._form.pooling == "cls" else _mean(tokens, features["attention_mask"])
        return torch.nn.functional.normalize(vectors, dim=1) if self._form.to_unit else vectors


def _mean(tokens: Any, attention_mask: Any) -> Any:
    """(n, t, d) vectors of tokens -> (n, d) the mean of those that are no padding."""
    import torch

    mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
    # Of half precision as of float; a sum of many halves would lose most of its digits.
    total = (tokens * mask).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1, dtype=torch.float32).clamp(min=_TINY)
