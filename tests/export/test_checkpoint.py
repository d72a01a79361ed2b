"""Hugging Face folders: the weights are transformers' own, and every damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError, ExportError
from safetensors.numpy import load_file, save_file

from tests.support.export.tiny_models import FAMILIES, edit_json, write_checkpoint

STATE_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "post_attention_norm": "post_self_attn_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "down": "mlp.down_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "post_mlp_norm": "post_mlp_layernorm.weight",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "llama"
    write_checkpoint(folder, "llama")
    return folder


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "llama"))


def state_value(state: dict[str, Any], name: str) -> Any:
    """transformers' tensor for a canonical name, found by this test's own rules."""
    language = "model.language_model." if "model.language_model.norm.weight" in state else "model."
    top = {
        "embed": f"{language}embed_tokens.weight",
        "final_norm": f"{language}norm.weight",
        "lm_head": "lm_head.weight",
    }
    if name in top:
        return state[top[name]]
    _, layer, base, *kind = name.split(".")
    prefix = f"{language}layers.{layer}."
    fused = f"{prefix}mlp.gate_up_proj.weight"
    if base in ("gate", "up") and fused in state:
        return state[fused].chunk(2, dim=0)[base == "up"]
    return state[".".join([prefix + STATE_NAMES[base], *kind])]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_weights_are_the_state_dict(family: str, tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path / family, family).state_dict()
    checkpoint = open_checkpoint(tmp_path / family)
    assert checkpoint.spec.family == family
    for name, weight in checkpoint.weights.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, state_value(state, name).numpy(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_of_half_precision(dtype: str, tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path / "glm4", "glm4", dtype=dtype, shard="60KB").state_dict()
    assert len(list((tmp_path / "glm4").glob("*.safetensors"))) > 2
    for name, weight in open_checkpoint(tmp_path / "glm4").weights.items():
        np.testing.assert_array_equal(weight, state_value(state, name).float().numpy(), err_msg=name)


@pytest.mark.slow
def test_tokenizer_template_and_generation_config(copy: Path) -> None:
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "eos_token_id": [256, 257]}
    (copy / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = open_checkpoint(copy)
    assert checkpoint.eos_token_ids == (256, 257)
    assert checkpoint.generation.defaults == {"temperature": 0.7, "top_k": 20, "top_p": 0.9}
    assert checkpoint.tokenizer == (copy / "tokenizer.json").read_bytes()
    assert checkpoint.templates.default == (copy / "chat_template.jinja").read_text()


def test_without_sampling_the_default_is_greedy(copy: Path) -> None:
    edit_json(copy / "generation_config.json", do_sample=False, temperature=0.7, top_p=0.9)
    assert open_checkpoint(copy).generation.defaults == {"temperature": 0.0, "top_p": 0.9}


def test_template_of_the_tokenizer_config(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert open_checkpoint(copy).templates.default is None
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert open_checkpoint(copy).templates.default == "D"


def test_tied_embeddings_may_be_stored_twice(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "qwen2", "qwen2")
    path = tmp_path / "qwen2" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, path)
    assert "lm_head" not in open_checkpoint(tmp_path / "qwen2").weights
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        open_checkpoint(tmp_path / "qwen2")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(path: Path, to: int) -> None:
    path.write_bytes(path.read_bytes()[:to])


def widen(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"] = np.ones(65, np.float32)


def as_integers(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"] = np.ones(64, np.int8)


def big_tokenizer(folder: Path) -> None:
    edit_json(folder / "config.json", eos_token_id=3)
    edit_json(folder / "generation_config.json", eos_token_id=3)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {**content["model"]["vocab"], "zzz": 300}
    (folder / "tokenizer.json").write_text(json.dumps(content))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "is no whole checkpoint: it lacks config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "config cut": (lambda f: truncate(f / "config.json", 40), "not valid JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
    "tokenizer too large": (big_tokenizer, "token id 300"),
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop("model.norm.weight")), "lacks model.norm.weight"),
    "extra tensor": (lambda f: rewrite(f, lambda t: t.update(score=np.ones(1, np.float32))), "not explain: score"),
    "wrong shape": (lambda f: rewrite(f, widen), "model.norm.weight has shape [65]; its config asks for [64]"),
    "truncated": (lambda f: truncate(f / "model.safetensors", 200_000), "model.safetensors is truncated: the tensor"),
    "truncated header": (lambda f: truncate(f / "model.safetensors", 100), "truncated or no safetensors file"),
    "empty": (lambda f: truncate(f / "model.safetensors", 0), "truncated or no safetensors file"),
    "damaged header": (lambda f: (f / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{]"), "is damaged"),
    "integer tensor": (lambda f: rewrite(f, as_integers), "model.norm.weight has type I8"),
    "eos out of range": (lambda f: edit_json(f / "generation_config.json", eos_token_id=300), "eos_token_id is 300"),
    "one eos out of range": (
        lambda f: edit_json(f / "generation_config.json", eos_token_id=[256, -1]),
        "eos_token_id is -1; the model's ids are 0 ... 299",
    ),
    "eos is no number": (lambda f: edit_json(f / "generation_config.json", eos_token_id=True), "eos_token_id is True"),
    "top_p of 0": (lambda f: edit_json(f / "generation_config.json", top_p=0), "top_p 0; allowed is above 0 ... 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, copy: Path) -> None:
    apply, message = DAMAGES[damage]
    apply(copy)
    with pytest.raises(ExportError) as caught:
        list(open_checkpoint(copy).weights.values())
    assert message in str(caught.value)


def test_missing_shard_and_wrong_index_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "glm"
    write_checkpoint(folder, "glm", shard="100KB")
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    name = "model.norm.weight"
    other = next(file for file in weight_map.values() if file != weight_map[name])
    edit_json(index, weight_map={**weight_map, name: other})
    with pytest.raises(CheckpointError, match=rf"places {name} in {other}"):
        open_checkpoint(folder)
    edit_json(index, weight_map={**weight_map, name: "../outside.safetensors"})
    with pytest.raises(CheckpointError, match="outside of the folder"):
        open_checkpoint(folder)
    edit_json(index, weight_map=weight_map)
    (folder / other).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks the shard {other}"):
        open_checkpoint(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        open_checkpoint(tmp_path / "absent")
