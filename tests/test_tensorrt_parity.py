"""The TensorRT lowering computes what transformers does: every family and precision, through networks that numpy computes.

Twice over. *Precisely* (nothing rounded to 16 bits) against transformers with the very weights and activations that the
precision multiplies: there the lowering itself must be right to 1e-4. And *as typed*, every tensor rounded as the network
says, against transformers in float32: the price of the precision, printed as a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorrt_rtx as trt
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.runner import Limits, run_step
from autoglm_export import parity, tensorrt_linear
from autoglm_export.bundled import resolve
from autoglm_export.checkpoint import Checkpoint, open_checkpoint
from autoglm_export.parity_text import TEXTS
from autoglm_export.reference import Reference
from autoglm_export.tensorrt_lowering import PRECISIONS
from autoglm_export.tensorrt_network import Network
from autoglm_export.tensorrt_ops import TensorRTOps
from conftest import ParityTable
from network_runner import NetworkRunner
from quantized_reference import quantize_reference
from tensorrt_networks import Defined, define_network
from tiny_models import FAMILIES, VOCAB_SIZE, write_checkpoint
from tokenizers import Tokenizer

pytestmark = pytest.mark.tensorrt

CACHE_LENGTH = 112
LIMITS = Limits(num_slots=4, max_length=96, prefill_chunk=32, vocab_size=VOCAB_SIZE, num_candidates=8)
# Relative L2 of a network computed precisely. In fp8 a last bit of float32 may put an activation on the next step of E4M3.
EXACT = {"fp16": 1e-5, "bf16": 1e-5, "fp8": 2e-3, "int4": 1e-5}
# Relative L2 of the worst row as typed, on random weights, which punish quantisation more than trained ones do.
TYPED = {"fp16": 6e-3, "bf16": 5e-2, "fp8": 0.4, "int4": 0.9}
IDS = np.random.default_rng(1).integers(0, VOCAB_SIZE, 80).astype(np.int32)
CALIBRATION = [np.random.default_rng(2).integers(0, VOCAB_SIZE, 200).astype(np.int32)]

Logits = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Tiny:
    path: Path
    checkpoint: Checkpoint
    weights: Mapping[str, Any]
    expected: Logits  # transformers' float32 logits of IDS


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("tensorrt") / request.param
    write_checkpoint(path, request.param)
    checkpoint = open_checkpoint(path)
    return Tiny(path, checkpoint, dict(checkpoint.weights), Reference.load(path).logits(IDS))


def defined(tiny: Tiny, precision: str) -> Defined:
    return define_network(
        tiny.checkpoint.spec,
        tiny.weights,
        precision,
        cache_length=CACHE_LENGTH,
        num_candidates=LIMITS.num_candidates,
        texts=CALIBRATION,
    )


def quantized_logits(tiny: Tiny, precision: str, scales: Mapping[tuple[str, ...], Any]) -> Logits:
    reference = Reference.load(tiny.path)
    quantize_reference(reference, tiny.checkpoint.spec, precision, scales)
    return reference.logits(IDS)


def largest_difference(runner: NetworkRunner, expected: Logits) -> float:
    """Relative L2, the largest of: a prompt in one chunk, in uneven chunks, and slots that decode at different places
    beside an idle one while another prefills."""
    differences = [relative(parity.prefill(runner, IDS[:30], slot=3, chunk=32), expected[29])]
    lengths = {0: 5, 1: 33, 3: 60}
    for slot, length in lengths.items():
        last = parity.prefill(runner, IDS[:length], slot, chunk=7 + slot)
        differences.append(relative(last, expected[length - 1]))
    for step in range(6):
        spans = [Span(slot, n + step, IDS[n + step : n + step + 1], True) for slot, n in lengths.items()]
        spans.append(Span(2, 4 * step, IDS[4 * step : 4 * step + 4], True))
        for span, row in zip(spans, run_step(runner, StepBatch(tuple(spans))), strict=True):
            differences.append(relative(row, expected[span.start + len(span.token_ids) - 1]))
    return max(differences)


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_network_is_the_model(tiny: Tiny, precision: str, parity_table: ParityTable) -> None:
    made = defined(tiny, precision)
    exact = quantized_logits(tiny, precision, made.scales)
    difference = largest_difference(NetworkRunner(made, LIMITS, cache_length=CACHE_LENGTH, precise=True), exact)
    typed = largest_difference(NetworkRunner(made, LIMITS, cache_length=CACHE_LENGTH), tiny.expected)
    parity_table[tiny.checkpoint.spec.family, precision] = (difference, typed)
    assert difference < EXACT[precision]
    assert typed < TYPED[precision]


# ---- a lowering that is broken on purpose is caught


Break = Callable[[Tiny, pytest.MonkeyPatch], Tiny]


def exchanged(first: str, second: str) -> Break:
    def broken(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
        weights = dict(tiny.weights)
        weights[first], weights[second] = weights[second], weights[first]
        return dataclasses.replace(tiny, weights=weights)

    return broken


def flipped_rope(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    rope = tiny.checkpoint.spec.rope
    spec = dataclasses.replace(tiny.checkpoint.spec, rope=dataclasses.replace(rope, interleaved=not rope.interleaved))
    return dataclasses.replace(tiny, checkpoint=dataclasses.replace(tiny.checkpoint, spec=spec))


def without_lengths(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    attention_v2 = trt.INetworkDefinition.add_attention_v2

    class Forgetful:
        """An attention that forgets the lengths it is given."""

        def __init__(self, attention: Any) -> None:
            self.get_output = attention.get_output

    attended = TensorRTOps._attended

    def broken(ops: TensorRTOps, *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(
                trt.INetworkDefinition, "add_attention_v2", lambda *given: Forgetful(attention_v2(*given)), raising=True
            )
            return attended(ops, *arguments)

    monkeypatch.setattr(TensorRTOps, "_attended", broken)
    return tiny


def upper_left(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    attention_v2 = trt.INetworkDefinition.add_attention_v2

    def broken(network: Any, query: Any, key: Any, value: Any, norm: Any, kind: Any) -> Any:
        return attention_v2(network, query, key, value, norm, trt.CausalMaskKind.UPPER_LEFT)

    monkeypatch.setattr(trt.INetworkDefinition, "add_attention_v2", broken)
    return tiny


def other_heads(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    heads = TensorRTOps._heads
    kv = tiny.checkpoint.spec.num_kv_heads
    monkeypatch.setattr(
        TensorRTOps, "_heads", lambda ops, x, first, count: heads(ops, x, first - kv * (first > 0), count)
    )
    return tiny


def unscaled(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    constant = Network.constant
    monkeypatch.setattr(
        Network,
        "constant",
        lambda network, name, x: constant(network, name, x * 0 + 1 if name == "attention_scale" else x),
    )
    return tiny


def reversed_scales(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Scales of quantised weights along the wrong order of outputs."""
    constant = Network.constant

    def broken(network: Network, name: str, x: Any) -> Any:
        return constant(network, name, x[..., ::-1] if name.endswith("weight_scale") else x)

    monkeypatch.setattr(Network, "constant", broken)
    return tiny


def other_half_first(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    pack = tensorrt_linear.pack_int4
    monkeypatch.setattr(tensorrt_linear, "pack_int4", lambda values: pack(values.reshape(-1, 2)[:, ::-1]))
    return tiny


BROKEN: list[tuple[str, str, Break]] = [
    ("gate and up exchanged", "bf16", exchanged("layers.0.gate.weight", "layers.0.up.weight")),
    ("query of two layers exchanged", "bf16", exchanged("layers.0.query.weight", "layers.1.query.weight")),
    ("key and value exchanged", "bf16", exchanged("layers.1.key.weight", "layers.1.value.weight")),
    ("norms exchanged", "bf16", exchanged("layers.0.attention_norm", "layers.0.mlp_norm")),
    ("interleaved flipped", "bf16", flipped_rope),
    ("key/value lengths dropped", "bf16", without_lengths),
    ("mask aligned to the upper left", "bf16", upper_left),
    ("heads cut at the wrong place", "bf16", other_heads),
    ("queries not scaled", "bf16", unscaled),
    ("fp8 weight scales in another order", "fp8", reversed_scales),
    ("int4 scales in another order", "int4", reversed_scales),
    ("int4 halves of a byte exchanged", "int4", other_half_first),
]


@pytest.mark.parametrize(("precision", "breaks"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
@pytest.mark.parametrize("tiny", ["llama", "glm4"], indirect=True)
def test_a_broken_lowering_is_caught(
    tiny: Tiny, precision: str, breaks: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the numbers differ by far more than the bound, or the network reads what was never written."""
    scales = defined(tiny, precision).scales
    exact = quantized_logits(tiny, precision, scales)
    made = defined(breaks(tiny, monkeypatch), precision)
    try:
        difference = largest_difference(NetworkRunner(made, LIMITS, cache_length=CACHE_LENGTH, precise=True), exact)
    except ValueError as error:
        assert "never written" in str(error)
    else:
        assert difference > 10 * EXACT[precision]


@pytest.mark.timeout(600)
def test_smollm2_as_typed(parity_table: ParityTable) -> None:
    """The real model in bfloat16: a prompt's logits and the tokens that follow it."""
    path, name = resolve("smollm2")
    source, reference = open_checkpoint(path, name=name), Reference.load(path)
    limits = Limits(num_slots=1, max_length=63, prefill_chunk=48, vocab_size=source.spec.vocab_size, num_candidates=64)
    made = define_network(source.spec, source.weights, "bf16", cache_length=64, num_candidates=64)
    runner = NetworkRunner(made, limits, cache_length=64)
    prompt = np.array(Tokenizer.from_str(source.tokenizer.decode()).encode(TEXTS["english"]).ids[:24], np.int32)
    difference = relative(parity.prefill(runner, prompt, 0, chunk=24), reference.logits(prompt)[-1])
    parity_table["smollm2", "bf16"] = (float("nan"), difference)
    assert difference < 0.03
    assert parity.greedy(runner, prompt, 16) == reference.greedy(prompt, 16)
