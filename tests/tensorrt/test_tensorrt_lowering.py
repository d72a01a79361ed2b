"""The TensorRT lowering: what the network is made of, that TensorRT builds it without a GPU, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorrt_rtx as trt
from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_export.errors import ExportError, InvalidOption, UnsupportedModel
from autoglm_export.model.spec import ModelSpec, RopeSpec
from autoglm_export.tensorrt import lowering as tensorrt_lowering
from autoglm_export.tensorrt import options as tensorrt_options
from autoglm_export.tensorrt import profiles as tensorrt_profiles
from autoglm_export.tensorrt.build import NestedProgress, explained
from autoglm_export.tensorrt.lowering import write_tensorrt, write_tensorrt_rtx
from autoglm_export.tensorrt.options import PRECISIONS
from autoglm_export.tensorrt.profiles import attention_lengths_of, cache_length_of, prefill_lengths_of

from tests.support.export.tiny_decoders import SPECS, random_weights
from tests.support.tensorrt.tensorrt_networks import Defined, define_network, layers_of

Array = npt.NDArray[np.float32]
IDS = [np.arange(40, dtype=np.int32)]
# One variant of every family, and what else the lowering tells apart.
VARIANTS = {name: SPECS[name] for name in ("llama", "llama-tied", "llama-biased", "qwen2", "qwen3", "glm", "glm4")}
VARIANTS["glm4v"] = dataclasses.replace(SPECS["glm4"], family="glm4v")
LIMITS = {"num_slots": 4, "max_length": 40, "prefill_chunk": 16}


@pytest.fixture(scope="module", params=VARIANTS)
def defined(request: pytest.FixtureRequest) -> Defined:
    spec = VARIANTS[request.param]
    return define_network(spec, random_weights(spec), "bf16", cache_length=48, num_candidates=7)


def test_every_layer_has_native_attention_cache_and_rope(defined: Defined) -> None:
    spec, layers = defined.spec, layers_of(defined.definition)
    attentions = [layer.attention for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
    assert len(attentions) == spec.num_layers
    for attention in attentions:
        assert not attention.decomposable
        assert attention.norm_op == trt.AttentionNormalizationOp.SOFTMAX
        assert attention.causal_kind == trt.CausalMaskKind.NONE
        assert attention.key_value_lengths is None
        assert attention.mask.dtype == trt.bool
    assert len({attention.mask.name for attention in attentions}) == 1
    updates = [layer for layer in layers if layer.type == trt.LayerType.KV_CACHE_UPDATE]
    turns = [layer for layer in layers if layer.type == trt.LayerType.ROTARY_EMBEDDING]
    assert (len(updates), len(turns)) == (2 * spec.num_layers, 2 * spec.num_layers)
    assert {layer.interleaved for layer in turns} == {spec.rope.interleaved}
    assert {layer.rotary_embedding_dim for layer in turns} == {spec.rope.dims}


def test_caches_are_paired_and_written_in_place(defined: Defined) -> None:
    spec = defined.spec
    updates = [layer for layer in layers_of(defined.definition) if layer.type == trt.LayerType.KV_CACHE_UPDATE]
    pairs = {layer.get_input(0).name: layer.get_output(0).name for layer in updates}
    kinds = [f"{kind}_{layer}" for layer in range(spec.num_layers) for kind in ("key", "value")]
    assert pairs == {f"past_{kind}": f"present_{kind}" for kind in kinds}
    assert {layer.get_input(2).name for layer in updates} == {"write_indices"}
    assert {layer.cache_mode for layer in updates} == {trt.KVCacheMode.LINEAR}


def test_the_tensors_are_those_of_the_contract(defined: Defined) -> None:
    spec, k = defined.spec, 7
    found = {t["name"]: (t["mode"], t["dtype"], t["shape"]) for t in tensorrt_lowering.tensors_of(defined.definition)}
    cache = [-1, spec.num_kv_heads, 48, spec.head_size]
    expected = {
        "token_ids": ("input", "int32", [-1, -1]),
        "position_ids": ("input", "int32", [-1, -1]),
        "write_indices": ("input", "int32", [-1]),
        "key_positions": ("input", "int32", [-1]),
        "logit_indices": ("input", "int32", [-1, 1]),
        "inverse_temperature": ("input", "float", [-1, 1]),
        "logit_factor": ("input", "float", [-1, spec.vocab_size]),
        "logit_offset": ("input", "float", [-1, spec.vocab_size]),
        "logits": ("output", "float", [-1, spec.vocab_size]),
        "candidate_logits": ("output", "float", [-1, k]),
        "candidate_ids": ("output", "int32", [-1, k]),
        "log_sum_exp": ("output", "float", [-1, 1]),
    }
    for layer in range(spec.num_layers):
        for kind in ("key", "value"):
            expected[f"past_{kind}_{layer}"] = ("input", "bf16", cache)
            expected[f"present_{kind}_{layer}"] = ("output", "bf16", cache)
    assert found == expected


def test_products_and_attention_are_all_that_is_not_float32(defined: Defined) -> None:
    narrow = {trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CAST, trt.LayerType.CONSTANT, trt.LayerType.KV_CACHE_UPDATE}
    narrow |= {trt.LayerType.ATTENTION_INPUT, trt.LayerType.ATTENTION_OUTPUT, trt.LayerType.SHUFFLE}
    narrow |= {trt.LayerType.GATHER}  # of the embedding table
    for layer in layers_of(defined.definition):
        is_of_cache = layer.type == trt.LayerType.SLICE and layer.get_input(0).name.startswith("present_")
        if layer.type not in narrow and not is_of_cache:
            types = {layer.get_output(i).dtype for i in range(layer.num_outputs)}
            assert types <= {trt.float32, trt.int32, trt.int64, trt.bool}, f"{layer.name} gives {types}"


def test_the_profiles_cover_what_the_runner_asks() -> None:
    decode, prefill, batched = tensorrt_profiles.profiles_of(SPECS["glm"], 16, 512, 1040)
    assert (decode.smallest["token_ids"], decode.largest["token_ids"]) == ((1, 1), (16, 1))
    assert (prefill.smallest["token_ids"], prefill.largest["token_ids"]) == ((1, 1), (1, 512))
    assert (batched.smallest["token_ids"], batched.largest["token_ids"]) == ((1, 1), (8, 128))
    for profile in (decode, prefill, batched):
        batch = profile.largest["token_ids"][0]
        assert (profile.smallest["key_positions"], profile.largest["key_positions"]) == ((1,), (1040,))
        assert profile.largest["past_key_1"] == (batch, 2, 1040, 32)
        assert set(profile.smallest) == set(profile.usual) == set(profile.largest)


@pytest.mark.parametrize("max_length", [2, 15, 16, 1023, 1024, 4096])
@pytest.mark.parametrize("chunk", [1, 100, 512])
def test_a_slot_has_spare_positions_for_an_idle_row(max_length: int, chunk: int) -> None:
    length = cache_length_of(max_length, chunk)
    assert length % 16 == 0
    assert min(chunk, 128) <= length - max_length < min(chunk, 128) + 16


def test_the_lengths_of_attention_and_prefill_end_with_the_whole() -> None:
    assert attention_lengths_of(48) == [48]
    assert attention_lengths_of(256) == [256]
    assert attention_lengths_of(25_728) == [256, 1024, 4096, 16384, 25_728]
    assert prefill_lengths_of(8) == [8]
    assert prefill_lengths_of(100) == [16, 64, 100]
    assert prefill_lengths_of(512) == [16, 64, 128, 256, 320, 384, 448, 512]
    lengths = prefill_lengths_of(2048)
    assert lengths[-1] == 2048
    assert all(later <= earlier * 5 / 4 for earlier, later in itertools.pairwise(lengths) if earlier >= 256)


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_engine_builds_without_a_gpu(variant: str, precision: str, tmp_path: Path) -> None:
    spec = VARIANTS[variant]
    stages: dict[str, float] = {}
    details = write_tensorrt_rtx(
        spec,
        random_weights(spec),
        tmp_path,
        precision=precision,
        texts=IDS,
        num_candidates=8,
        progress=lambda stage, fraction: stages.update({stage: fraction}),
        **LIMITS,
    )
    assert (tmp_path / details["engine"]).stat().st_size > 10_000
    assert details["attention"] == "fused"
    assert details["compute_capabilities"] == (["8.9", "12.0"] if precision == "fp8" else ["8.0", "8.6", "8.9", "12.0"])
    assert details["profiles"] == {
        "decode": {"batch": [1, 4], "sequence": [1, 1], "keys": [1, 64]},
        "prefill": {"batch": [1, 1], "sequence": [1, 16], "keys": [1, 64]},
        "batched_prefill": {"batch": [1, 4], "sequence": [1, 16], "keys": [1, 64]},
    }
    assert details["cache_dtype"] == ("float16" if precision == "fp16" else "bfloat16")
    assert stages == {"define network": 1.0, "build engine": 1.0, "reference": 1.0}


@pytest.mark.tensorrt
def test_weights_may_stay_in_host_memory(tmp_path: Path) -> None:
    spec = SPECS["glm4"]
    details = write_tensorrt_rtx(
        spec, random_weights(spec), tmp_path, precision="bf16", num_candidates=8, weight_streaming=True, **LIMITS
    )
    assert details["weight_streaming"] is True
    assert (tmp_path / details["engine"]).stat().st_size > 10_000


class Repeated(Mapping[str, Array]):
    """Random weights of any size that take no memory: each row is the one before, moved by a number, and each name
    begins elsewhere (TensorRT stores equal constants once)."""

    def __init__(self, spec: ModelSpec) -> None:
        self._shapes = weight_shapes(spec)
        count = max(sum(shape) for shape in self._shapes.values()) + len(self._shapes)
        self._numbers = np.random.default_rng(0).standard_normal(count).astype(np.float32) * np.float32(0.02)

    def __getitem__(self, name: str) -> Array:
        first, shape = self._numbers[list(self._shapes).index(name) :], self._shapes[name]
        return np.lib.stride_tricks.as_strided(first, shape, first.strides * len(shape), writeable=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __len__(self) -> int:
        return len(self._shapes)


GLM_4_1V_TEXT = ModelSpec(
    "glm4v",
    vocab_size=151552,
    hidden_size=4096,
    num_layers=2,
    num_heads=32,
    num_kv_heads=2,
    head_size=128,
    intermediate_size=13696,
    norm_eps=1e-5,
    rope=RopeSpec(10000.0, 64, interleaved=True),
    max_position=65536,
    qkv_bias=True,
    sandwich_norm=True,
)


@pytest.mark.tensorrt
@pytest.mark.timeout(3600)
def test_two_layers_of_glm_4_1v_at_their_real_width(tmp_path: Path) -> None:
    details = write_tensorrt_rtx(
        GLM_4_1V_TEXT,
        Repeated(GLM_4_1V_TEXT),
        tmp_path,
        precision="bf16",
        num_slots=16,
        max_length=4096,
        prefill_chunk=512,
    )
    parameters = sum(int(np.prod(shape)) for shape in weight_shapes(GLM_4_1V_TEXT).values())
    assert (tmp_path / details["engine"]).stat().st_size > 2 * parameters
    assert details["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"precision": "int8"}, "the precision 'int8' is not known; allowed are bf16, fp16, fp8, int4"),
    ({"kv_dtype": "fp8"}, "kv_dtype is 'fp8'; allowed are bf16, fp16"),
    ({"kv_dtype": "fp16"}, "kv_dtype is fp16 and the precision bf16; they must be the same"),
    ({"num_candidates": 0}, "num_candidates is 0; allowed is 1 ... 97 for this model"),
    ({"num_candidates": 98}, "num_candidates is 98; allowed is 1 ... 97"),
    ({"compute_capabilities": ["8.9", "7.0"]}, "compute_capability is '7.0'; tensorrt-rtx builds for 8.0, 8.6"),
    ({"compute_capabilities": ["9.0"]}, "for 9.0, Hopper, take tensorrt"),
    ({"int4_rounding": "up"}, "int4_rounding is 'up'; allowed are gptq, nearest"),
    ({"int4_rounding": "nearest"}, "int4_rounding is of no use to bf16"),
    ({"compute_capabilities": ["7.5"]}, "compute_capability is '7.5'; attention needs 8.0 or newer"),
    ({"attention": "flash"}, "attention is 'flash'; allowed are fused, decomposed, plain"),
    ({"precision": "fp8", "compute_capabilities": ["8.0"]}, "compute_capability is 8.0; fp8 needs 8.9 or newer"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_options_out_of_range(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    spec = SPECS["llama"]
    with pytest.raises(InvalidOption) as caught:
        write_tensorrt_rtx(spec, random_weights(spec), tmp_path, **{"precision": "bf16", **LIMITS, **options})
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_tensorrt_itself_builds_for_its_own_machine_only(tmp_path: Path) -> None:
    spec = SPECS["llama"]
    with pytest.raises(InvalidOption, match="tensorrt builds for the GPU of its own machine"):
        write_tensorrt(spec, random_weights(spec), tmp_path, precision="bf16", compute_capabilities=["8.9"], **LIMITS)


def test_a_weight_that_float16_cannot_hold(tmp_path: Path) -> None:
    spec = SPECS["llama"]
    weights = random_weights(spec)
    weights["layers.1.gate.weight"][3, 5] = 70_000.0
    with pytest.raises(
        UnsupportedModel, match=r"layers\.1\.gate\.weight has a value of magnitude 70000, beyond 65504 of float16"
    ):
        write_tensorrt_rtx(spec, weights, tmp_path, precision="fp16", num_candidates=8, **LIMITS)


def test_an_unsupported_data_type_of_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT itself answers, with our own check out of the way."""
    monkeypatch.setitem(tensorrt_options.OLDEST_CAPABILITY, "fp8", (8, 0))
    spec = SPECS["llama"]
    with pytest.raises(ExportError, match="a target GPU lacks a data type of this precision"):
        write_tensorrt_rtx(
            spec,
            random_weights(spec),
            tmp_path,
            precision="fp8",
            compute_capabilities=["8.0"],
            texts=IDS,
            num_candidates=8,
            **LIMITS,
        )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise ModuleNotFoundError(name='tensorrt')",
            "this export needs the package tensorrt: pip install 'autoglm-triton[tensorrt]'",
        ),
        (
            "raise OSError('libnvinfer.so.11: cannot open')",
            "installed and cannot be loaded: libnvinfer.so.11: cannot open; pip",
        ),
        ("__version__ = '10.13.2'", "tensorrt 10.13.2 is too old; 11.0 or newer is needed"),
        (
            "__version__ = '11.4.0'\nclass ILogger:\n ERROR = 0\ndef Builder(log): raise TypeError('nullptr')",
            "the engine was not built: nullptr",
        ),
    ],
)
def test_a_tensorrt_that_cannot_build_here(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tensorrt` itself cannot be installed where its libraries cannot be reached; modules of that name stand for
    it."""
    (tmp_path / "tensorrt.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    output = tmp_path / "artifact"
    with pytest.raises(ExportError) as caught:
        write_tensorrt(SPECS["llama"], random_weights(SPECS["llama"]), output, precision="bf16", **LIMITS)
    assert message in str(caught.value)
    assert not output.exists()
    sys.modules.pop("tensorrt", None)


MEANINGS = [
    (["Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)"], "no NVIDIA driver answers"),
    (
        ["CUDA initialization failure with error: 100"],
        "no GPU answers on this machine; build on the machine with the GPU",
    ),
    (["Error Code 2: OutOfMemory (Requested size was 123)"], "memory ran out; take fewer or shorter slots"),
    (["Something\n  else"], "the engine was not built: Something else"),
    (["API Usage Error (a flag)", "cudaError 35: insufficient"], "the engine was not built: API Usage Error (a flag)"),
    (["cudaError 35: insufficient", "std::bad_alloc"], "memory ran out"),
    ([], "TensorRT gave no reason"),
]


@pytest.mark.parametrize(("errors", "meaning"), MEANINGS)
def test_what_tensorrt_says_is_explained(errors: list[str], meaning: str) -> None:
    assert meaning in explained(errors)


def test_nested_phases_are_one_fraction_that_never_falls() -> None:
    shown: list[float] = []
    progress = NestedProgress(lambda stage, fraction: shown.append(fraction))
    progress.start("whole", None, 4)
    progress.step("whole", 0)
    progress.start("part", "whole", 2)
    progress.step("part", 0)
    progress.step("part", 1)
    progress.finish("part")
    progress.step("whole", 1)
    progress.start("unknown", "nobody", 0)
    progress.finish("unknown")
    progress.finish("whole")
    assert shown[:5] == [0.25, 0.375, 0.5, 0.5, 0.5]
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
