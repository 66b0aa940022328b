"""Merged and exported adapters, read back by other code than ours: they say what base and adapter said together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import HashingEmbedder
from small_models import save_adapter, save_small_model
from typer.testing import CliRunner

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.store import Store
from indexer.sync import sync
from service.cli import app
from tuner.adapters import read_card, save_card
from tuner.basemodel import BaseModel, load_base_model
from tuner.export import export_gguf, export_peft
from tuner.generation import TorchGenerator
from tuner.gguf_export import gguf_name, interleave, modelfile
from tuner.merge import merge_adapter
from tuner.prompt import REFUSAL, Source, build_prompt
from tuner.staleness import stale_documents


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "model")


@pytest.fixture
def base(model_folder: Path) -> BaseModel:
    return load_base_model(str(model_folder), cache=model_folder.parent, device="cpu")


@pytest.fixture
def adapter(tmp_path: Path, base: BaseModel) -> Path:
    return save_adapter(tmp_path / "home" / "adapters" / "bees", base, seed=1)


def answer(generator: TorchGenerator, adapter: str | None = None, sources: Sequence[Source] | None = None) -> str:
    prompt = build_prompt(generator.tokenizer, "Who leads the hive?", sources, limit=400)
    return "".join(piece.text for piece in generator.generate(prompt, max_tokens=16, adapter=adapter))


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None]).logits[0].float()


def tuned_logits(base: BaseModel, adapter: Path) -> Any:
    """The sum itself, written out: W + (alpha / r) B A."""
    import copy

    import torch
    from safetensors.torch import load_file

    model = copy.deepcopy(base.model)
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for key in [key for key in tensors if key.endswith("lora_A.weight")]:
            module = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight += 2.0 * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    return logits(model)


def test_the_merged_model_answers_like_the_adapter(tmp_path: Path, base: BaseModel, adapter: Path) -> None:
    plain, said = logits(base.model), answer(TorchGenerator(base, {"bees": adapter}), "bees")
    fresh = load_base_model(str(tmp_path / "model"), cache=tmp_path, device="cpu")
    expected = tuned_logits(fresh, adapter)
    merged = merge_adapter(fresh, adapter, tmp_path / "merged")
    again = load_base_model(str(tmp_path / "merged"), cache=tmp_path, device="cpu")
    assert abs(logits(again.model) - expected).max() < 1e-3 < abs(plain - expected).max()
    assert answer(TorchGenerator(again)) == said
    assert again.sha256 != base.sha256
    assert 0 <= merged.distance < 1e-3 * merged.largest
    assert merged.same_token == 1.0
    record = json.loads((tmp_path / "merged" / "merged.json").read_text())
    assert (record["adapter"], record["base_sha256"]) == ("bees", base.sha256)
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.parametrize(("threshold", "setting"), [(0.0, None), (1.0, None), (0.0, 1.0), (1.0, 0.0), (None, 0.0)])
def test_the_merged_model_refuses_like_the_adapter(
    tmp_path: Path, base: BaseModel, adapter: Path, threshold: float | None, setting: float | None
) -> None:
    save_card(adapter, replace(read_card(adapter), refusal_threshold=threshold))
    passages = [Source("Bees", "A hive has a queen.")]
    both = TorchGenerator(base, {"bees": adapter}, refusal_threshold=setting)
    fresh = load_base_model(str(tmp_path / "model"), cache=tmp_path, device="cpu")
    merge_adapter(fresh, adapter, tmp_path / "merged")
    again = load_base_model(str(tmp_path / "merged"), cache=tmp_path, device="cpu")
    merged = TorchGenerator(again, refusal_threshold=setting)
    said = answer(both, "bees", passages)
    assert answer(merged, None, passages) == said
    decided = threshold if setting is None else setting
    assert (said == REFUSAL[: len(said)]) == (decided == 0)
    assert answer(merged) == answer(both, "bees") != said
    # The base model alone has no threshold, whatever the setting.
    assert not answer(both, None, passages).startswith(REFUSAL[:4])


def test_a_record_of_a_merge_is_checked(model_folder: Path) -> None:
    record = model_folder / "merged.json"
    for other in ({"refusal_threshold": 0.5}, ["adapter_sha256"]):
        record.write_text(json.dumps(other))
        assert not load_base_model(str(model_folder), cache=model_folder.parent, device="cpu").is_merged
    record.write_text(json.dumps({"adapter_sha256": "0", "refusal_threshold": 1.5}))
    with pytest.raises(TandemError, match="no share from 0 to 1"):
        load_base_model(str(model_folder), cache=model_folder.parent, device="cpu")


def test_half_precision_is_written_when_asked_for(tmp_path: Path, base: BaseModel, adapter: Path) -> None:
    from safetensors.torch import load_file

    merge_adapter(base, adapter, tmp_path / "half", numbers="bfloat16")
    kinds = {str(value.dtype) for value in load_file(tmp_path / "half" / "model.safetensors").values()}
    assert kinds == {"torch.bfloat16"}


def test_another_base_or_a_quantised_one_is_refused(tmp_path: Path, base: BaseModel, adapter: Path) -> None:
    with pytest.raises(TandemError, match="another base model"):
        merge_adapter(replace(base, sha256="0" * 64), adapter, tmp_path / "merged")
    with pytest.raises(TandemError, match="rounds the adapter away"):
        merge_adapter(replace(base, quantisation="nf4"), adapter, tmp_path / "merged")
    (tmp_path / "there").mkdir()
    with pytest.raises(TandemError, match="already"):
        merge_adapter(base, adapter, tmp_path / "there")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_went_wrong_leaves_nothing(
    tmp_path: Path, base: BaseModel, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner import merge

    save = merge._save

    def damaged(model: Any, *others: Any) -> None:
        model.model.embed_tokens.weight.data[:40] *= 1.5
        save(model, *others)

    monkeypatch.setattr(merge, "_save", damaged)
    with pytest.raises(TandemError, match="does not answer as the adapter did"):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_peft_folder_is_read_by_peft_alone(tmp_path: Path, base: BaseModel, adapter: Path) -> None:
    from peft import PeftModel

    from tuner.quiet import quiet

    expected = tuned_logits(base, adapter)
    export_peft(base, adapter, tmp_path / "peft", card=False)
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with quiet():
        model = PeftModel.from_pretrained(base.model, tmp_path / "peft")
    assert abs(logits(model) - expected).max() < 1e-3
    assert export_peft_has_card(base, adapter, tmp_path)


def export_peft_has_card(base: BaseModel, adapter: Path, tmp_path: Path) -> bool:
    return "card.json" in export_peft(base, adapter, tmp_path / "with-card").files


def write_template(path: Path, base: BaseModel) -> Path:
    """A GGUF file without tensors: the settings and the tokenizer of the small model, as llama.cpp lays them out."""
    from gguf import GGUFWriter

    config, tokenizer = base.model.config, base.tokenizer
    writer = GGUFWriter(path, "llama")
    writer.add_name("template")
    writer.add_uint32("llama.block_count", config.num_hidden_layers)
    writer.add_uint32("llama.context_length", config.max_position_embeddings)
    writer.add_uint32("llama.embedding_length", config.hidden_size)
    writer.add_uint32("llama.feed_forward_length", config.intermediate_size)
    writer.add_uint32("llama.attention.head_count", config.num_attention_heads)
    writer.add_uint32("llama.attention.head_count_kv", config.num_key_value_heads)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_uint32("llama.vocab_size", config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", [token for token, _ in vocabulary])
    writer.add_array("tokenizer.ggml.token_type", [3 if number < 3 else 1 for _, number in vocabulary])
    writer.add_array("tokenizer.ggml.merges", [" ".join(pair) for pair in merges])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 0)
    writer.add_string("tokenizer.chat_template", tokenizer.chat_template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("numbers", "tolerance"), [("f32", 1e-5), ("f16", 5e-3), ("q8_0", 0.1)])
def test_transformers_reads_the_gguf_file_as_the_same_model(
    tmp_path: Path, base: BaseModel, adapter: Path, numbers: Any, tolerance: float
) -> None:
    import contextlib
    import io

    from transformers import AutoModelForCausalLM, GgufConfig

    from tuner.quiet import quiet

    expected, plain = tuned_logits(base, adapter), logits(base.model)
    template = write_template(tmp_path / "template.gguf", base)
    done = export_gguf(base, adapter, template, tmp_path / "gguf", numbers=numbers)
    assert done.files == ("Modelfile", "bees.gguf")
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "gguf", gguf_file="bees.gguf", quantization_config=GgufConfig(dequantize=True)
        ).float()
    found = logits(model)
    assert (found - expected).norm() < tolerance * expected.norm() < (plain - expected).norm()


def test_a_template_that_does_not_fit_is_refused(tmp_path: Path, base: BaseModel, adapter: Path) -> None:
    other = load_base_model(str(save_small_model(tmp_path / "other")), cache=tmp_path, device="cpu")
    other.model.config.num_hidden_layers = 3
    template = write_template(tmp_path / "template.gguf", other)
    with pytest.raises(TandemError, match="not those of its base"):
        export_gguf(base, adapter, template, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()


def test_rows_are_interleaved_within_each_head() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert interleave(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert gguf_name("model.layers.12.self_attn.o_proj.weight") == "blk.12.attn_output.weight"
    assert gguf_name("model.layers.1.unknown.weight") is None


def test_the_modelfile_names_its_file_and_ends_turns() -> None:
    text = modelfile("<|im_start|>...", file="bees.gguf", system="Answer.", window=2048)
    assert text.startswith("FROM ./bees.gguf\n")
    assert "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "TEMPLATE" not in modelfile("[INST]", file="x.gguf", system="Answer.", window=2048)


def test_documents_that_changed_or_went_are_named(tmp_path: Path, base: BaseModel, adapter: Path) -> None:
    from indexer.records import content_hash

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("same", "moved", "changed", "gone"):
        (corpus / f"{name}.txt").write_text(f"The {name} text.\n")
    store = Store(tmp_path / "home")

    def index(folder: Path) -> None:
        sync(store, [folder], HashingEmbedder(), ChunkSize(40, 8), allow_empty=True)

    index(corpus)
    with store.read() as snapshot:
        entries = tuple(
            {
                "id": str(item["id"]),
                "path": str(item["document"]),
                "hash": content_hash(snapshot.document(str(item["id"])).text),
            }
            for item in snapshot.list_documents()
        )
        card = save_card(adapter, replace(read_card(adapter), documents=entries))
        assert stale_documents(card, snapshot) == ()
    (corpus / "changed.txt").write_text("Another text.\n")
    (corpus / "gone.txt").unlink()
    index(corpus)
    with store.read() as snapshot:
        found = [(entry["path"], entry["change"]) for entry in stale_documents(card, snapshot)]
        assert found == [("changed.txt", "changed"), ("gone.txt", "deleted")]
        # The same text in a folder of another name has another id.
        other = replace(card, documents=tuple({**entry, "id": "0" * 16} for entry in entries))
        assert len(stale_documents(other, snapshot)) == 2
        assert stale_documents(replace(card, name="default"), snapshot) == ()
    store.close()


def test_show_merge_and_export_from_the_command_line(
    tmp_path: Path, base: BaseModel, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_card(adapter, replace(read_card(adapter), metrics={"f1": 0.631, "questions": [1, 2]}, refusal_threshold=0.4))
    write_template(tmp_path / "model" / "model.gguf", base)
    monkeypatch.chdir(tmp_path)
    for name, value in (("HOME", tmp_path / "home"), ("BASE_MODEL", tmp_path / "model"), ("WEIGHTS", tmp_path / "w")):
        monkeypatch.setenv(f"TANDEM_{name}", str(value))
    runner = CliRunner()

    def tandem(*words: str) -> Any:
        return runner.invoke(app, ["adapters", *words])

    shown = tandem("show", "bees")
    assert shown.exit_code == 0, shown.output
    assert "rank 4" in shown.stdout and "f1=0.631" in shown.stdout and "nothing is indexed" in shown.stdout
    body = json.loads(tandem("show", "bees", "--json").stdout)
    # Rank 4 beside q_proj (32 x 32) and down_proj (64 x 32) in two layers.
    assert body["parameters"] == 2 * 4 * (32 + 32 + 64 + 32)
    assert tandem("show", "wasps").exit_code == 2
    merged = tandem("merge", "bees", "merged")
    assert merged.exit_code == 0 and "Largest difference" in merged.stdout, merged.output
    assert "threshold (0.4): other servers decode greedily" in merged.stdout
    assert json.loads((tmp_path / "merged" / "merged.json").read_text())["refusal_threshold"] == 0.4
    for form, file in (("peft", "card.json"), ("safetensors", "model.safetensors"), ("gguf", "bees.gguf")):
        exported = tandem("export", "bees", form, "--format", form)
        assert exported.exit_code == 0 and "other servers decode greedily" in exported.stdout, exported.output
        assert (tmp_path / form / file).is_file()
    for wrong in (["merged"], ["new", "--format", "onnx"], ["new", "--type", "q4"]):
        assert tandem("export", "bees", *wrong).exit_code == 2
    assert tandem("merge", "bees", "new", "--dtype", "int8").exit_code == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_bundled_model_as_gguf_answers_like_the_adapter(weights_cache: Path, tmp_path: Path) -> None:
    """transformers reads the file, tokenizer and template included, and decodes greedily: the same words."""
    import contextlib
    import io

    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from tuner.export import gguf_of
    from tuner.quiet import quiet

    base = load_base_model("bundled", cache=weights_cache, device="cpu")
    folder = save_adapter(tmp_path / "random", base, seed=5)
    generator = TorchGenerator(base, {"random": folder})
    said = {name: answer(generator, name) for name in (None, "random")}
    assert said[None] != said["random"]
    # Merging starts from a model that nothing was ever attached to.
    base = load_base_model("bundled", cache=weights_cache, device="cpu")
    export_gguf(base, folder, gguf_of("bundled", weights_cache), tmp_path / "gguf")
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "gguf", gguf_file="random.gguf", quantization_config=GgufConfig(dequantize=True)
        ).float()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gguf", gguf_file="random.gguf")
    again = replace(base, load=model.eval, tokenizer=tokenizer)
    assert answer(TorchGenerator(again)) == said["random"]
