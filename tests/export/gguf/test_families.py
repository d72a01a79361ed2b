"""Every family's GGUF file, as llama.cpp's converter writes it, is the transformers model that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import ExportError
from autoglm_export.parity import gate as parity
from autoglm_export.parity.reference import Reference
from gguf.quants import dequantize

from tests.export.test_gguf import tokenizer_metadata
from tests.support.export.gguf_conversion import SCALES, converted_metadata, decoder_tensors, write, write_model
from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.tiny_glm4v import gguf_tokenizer, tiny_glm4v
from tests.support.export.tiny_models import tiny_model

pytestmark = pytest.mark.parity

LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "glm": {"head_dim": 16},  # the file has no key for it
    "qwen3": {"head_dim": 128},  # transformers takes no other from a GGUF file
}
FROM_FILE = ("llama", "qwen2", "qwen3")  # whose GGUF files transformers reads
PROMPT = np.random.default_rng(5).integers(0, 250, 24).astype(np.int32)


def best_tokens(model: Any, num_tokens: int) -> list[int]:
    import torch

    ids = torch.from_numpy(PROMPT.astype(np.int64))[None]
    with torch.inference_mode():
        for _ in range(num_tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in ids[0, len(PROMPT) :]]


def read_by_transformers(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def our_best_tokens(path: Path, num_tokens: int) -> list[int]:
    checkpoint = open_checkpoint(path)
    runner = NumpyRunner(checkpoint.spec, checkpoint.weights, max_length=len(PROMPT) + num_tokens)
    (answer,) = parity.greedy(runner, [PROMPT], num_tokens)
    return [int(token) for token in answer]


@pytest.mark.parametrize("fused_qkv", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "glm", "glm4", "glm4v"])
def test_greedy_tokens_are_those_of_transformers(family: str, fused_qkv: bool, tmp_path: Path) -> None:
    model = tiny_glm4v() if family == "glm4v" else tiny_model(family, **CHANGES.get(family, {}))
    tokenizer = gguf_tokenizer() if family == "glm4v" else tokenizer_metadata()
    path = write_model(tmp_path / "m.gguf", model, tokenizer, fused_qkv=fused_qkv)
    reference = read_by_transformers(path) if family in FROM_FILE and not fused_qkv else model
    assert our_best_tokens(path, 12) == best_tokens(reference, 12)


def llama3_divisors(dims: int) -> Any:
    """`rope_freqs.weight`, as `LlamaModel.generate_extra_tensors` computes it."""
    frequencies = LLAMA3["rope_theta"] ** -(np.arange(0, dims, 2, dtype=np.float32) / dims)
    wavelengths = 2 * np.pi / frequencies
    smooth = np.clip((8192 / wavelengths - 1.0) / 3.0, 0.0, 1.0)
    return (1 / ((1 - smooth) / LLAMA3["factor"] + smooth)).astype(np.float32)


def test_llama3_scaling_and_tied_output_of_a_file(tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "max_position_embeddings": 32768}
    model = tiny_model("llama", **CHANGES["llama"], **rope)
    tensors = {**decoder_tensors(model), "rope_freqs.weight": llama3_divisors(16)}
    assert "output.weight" not in tensors
    write(tmp_path / "m.gguf", "llama", converted_metadata(model) | tokenizer_metadata(), tensors)
    assert our_best_tokens(tmp_path / "m.gguf", 12) == best_tokens(model, 12)


LINEAR: dict[str, dict[str, Any]] = {
    "as written now": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    "as written once": {"llama.rope.scale_linear": 4.0},
}


@pytest.mark.parametrize("case", LINEAR)
def test_linear_scaling_of_a_file(case: str, tmp_path: Path) -> None:
    """Far positions, where it shows; and 10,000 where the file has no base."""
    rope: dict[str, Any] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    model = tiny_model("llama", **CHANGES["llama"], rope_parameters=rope)
    metadata = converted_metadata(model) | tokenizer_metadata() | LINEAR[case]
    del metadata["llama.rope.freq_base"]
    write(tmp_path / "m.gguf", "llama", metadata, decoder_tensors(model))
    assert our_best_tokens(tmp_path / "m.gguf", 12) == best_tokens(model, 12)


WIDE = {**CHANGES["llama"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", *SCALES])
def test_logits_of_quantised_files(kind: str, tmp_path: Path) -> None:
    """Weights bit by bit as the library dequantises them, logits as transformers computes them from the file."""
    model = tiny_model("llama", **WIDE)
    path = write_model(tmp_path / "m.gguf", model, tokenizer_metadata(), kind=kind)
    checkpoint, reader = open_checkpoint(path), gguf.GGUFReader(path)
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for name, tensor in (("embed", "token_embd"), ("layers.0.down.weight", "blk.0.ffn_down")):
        assert checkpoint.weights[name].tobytes() == stored[f"{tensor}.weight"].tobytes()
    runner = NumpyRunner(checkpoint.spec, checkpoint.weights, max_length=len(PROMPT))
    (ours,) = parity.teacher_forced(runner, [PROMPT])
    theirs = logits_of(read_by_transformers(path))
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 2e-5


def logits_of(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(PROMPT.astype(np.int64))[None]).logits[0].float().numpy()


def test_a_check_says_what_transformers_does_not_read(tmp_path: Path) -> None:
    write_model(tmp_path / "glm4.gguf", tiny_model("glm4"), tokenizer_metadata())
    with pytest.raises(ExportError, match=r"transformers .* does not read glm4\.gguf, so nothing can be compared"):
        Reference.load(tmp_path)
    for name in ("m-00001-of-00002.GGUF", "m-00002-of-00002.GGUF"):
        (tmp_path / name).touch()
    with pytest.raises(ExportError, match="transformers reads no GGUF model of 2 shards"):
        Reference.load(tmp_path / "m-00002-of-00002.GGUF")
