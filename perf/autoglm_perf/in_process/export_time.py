"""How long an int8 export takes: `python -m autoglm_perf.in_process.export_time`.

The checkpoint is made here, with random weights in the shape of Qwen2.5-1.5B (1.5 billion weights, 1.3 of them outside
the embedding table) and SmolLM2's tokenizer: an export does the same work whatever the weights are.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from autoglm_export.checkpoint.bundled import resolve
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.export import export
from autoglm_export.reproducible import kernels
from safetensors.numpy import save_file

# Its config.json, as far as the exporter reads it: huggingface.co/Qwen/Qwen2.5-1.5B-Instruct
QWEN_1_5B: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
_POOL = 1 << 24  # random numbers that all tensors are cut from


def write_checkpoint(folder: Path, config: Mapping[str, Any] = QWEN_1_5B) -> int:
    """A Hugging Face folder with random bfloat16 weights; returns how many there are."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    path, name = resolve("smollm2")
    (folder / "tokenizer.json").write_bytes(open_checkpoint(path, name=name).tokenizer)
    random = np.random.default_rng(0)
    pool = (random.standard_normal(_POOL, np.float32) * config["hidden_size"] ** -0.5).astype(ml_dtypes.bfloat16)
    tensors = {
        name: np.ones(shape, ml_dtypes.bfloat16)
        if name.endswith("norm.weight")
        else np.resize(np.roll(pool, random.integers(_POOL)), shape)
        for name, shape in _shapes(config).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return sum(tensor.size for tensor in tensors.values())


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_value = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        sizes = {"q": hidden, "k": key_value, "v": key_value}
        shapes |= {f"model.layers.{i}.self_attn.{each}_proj.weight": (size, hidden) for each, size in sizes.items()}
        shapes |= {f"model.layers.{i}.self_attn.{each}_proj.bias": (size,) for each, size in sizes.items()}
        shapes |= {f"model.layers.{i}.self_attn.o_proj.weight": (hidden, hidden)}
        shapes |= {f"model.layers.{i}.mlp.{each}_proj.weight": (inner, hidden) for each in ("gate", "up")}
        shapes |= {f"model.layers.{i}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"model.layers.{i}.{each}_layernorm.weight": (hidden,) for each in ("input", "post_attention")}
    return shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="keep checkpoint and artifact here; a checkpoint there is used again"
    )
    parser.add_argument("--runtime", default="native", choices=["native", "onnx"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(given.folder or Path(temporary), given.runtime)


def measure(folder: Path, runtime: str) -> None:
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        print(f"made a checkpoint of {write_checkpoint(checkpoint) / 1e9:.2f} billion weights", flush=True)
    stages: dict[str, float] = {}
    started = time.perf_counter()

    def progress(stage: str, fraction: float) -> None:
        stages[stage] = time.perf_counter() - started

    manifest = export(checkpoint, folder / runtime, runtime=runtime, progress=progress)
    seconds = time.perf_counter() - started
    print(f"{runtime} {manifest.precision} export: {seconds:.1f} s ({kernels().description}, {os.cpu_count()} cores)")
    for stage, end in stages.items():
        print(f"  {end:7.1f} s  {stage} done")


if __name__ == "__main__":
    main()
