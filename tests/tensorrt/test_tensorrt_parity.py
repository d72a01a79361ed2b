"""The TensorRT lowering computes what transformers does: every family and precision, through networks that numpy
computes.

Twice over. *Precisely* (nothing rounded to 16 bits) against transformers with the very weights and activations that the
precision multiplies: there the lowering itself must be right to 1e-5, rounding ties left aside (`recorded_rows`). And
*as typed*, every tensor rounded as the network says, against transformers in float32: the price of the precision,
printed as a table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.runners.base import Limits, run_step
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.bundled import resolve
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.parity import gate as parity
from autoglm_export.parity.reference import Reference
from autoglm_export.parity.text import TEXTS
from autoglm_export.quantize.int4 import title_of
from autoglm_export.tensorrt import linear as tensorrt_linear
from autoglm_export.tensorrt.attention import Attention
from autoglm_export.tensorrt.linear import FP8_LARGEST
from autoglm_export.tensorrt.network import Network
from autoglm_export.tensorrt.ops import TensorRTOps
from autoglm_export.tensorrt.options import PRECISIONS
from tokenizers import Tokenizer

from tests.conftest import ParityTable
from tests.support.export.quantized_reference import quantize_reference
from tests.support.export.tiny_models import FAMILIES, VOCAB_SIZE, write_checkpoint
from tests.support.tensorrt.network_runner import NetworkRunner
from tests.support.tensorrt.recorded_rows import RecordedRows
from tests.support.tensorrt.tensorrt_networks import Defined, define_network
from tests.support.tensorrt.trt_interpreter.layers import Inputs, Intercept, required
from tests.support.tensorrt.trt_interpreter.network import Layer

pytestmark = pytest.mark.tensorrt

CACHE_LENGTH = 112
LIMITS = Limits(num_slots=4, max_length=96, prefill_chunk=32, vocab_size=VOCAB_SIZE, num_candidates=8)
EXACT = 1e-5  # relative L2 of a network computed precisely
# Relative L2 of the worst row as typed, on random weights, which punish quantisation more than trained ones do.
TYPED = {"fp16": 2e-2, "bf16": 5e-2, "fp8": 0.4, "int4": 0.9}
IDS = np.random.default_rng(1).integers(0, VOCAB_SIZE, 80).astype(np.int32)
CALIBRATION = [np.random.default_rng(2).integers(0, VOCAB_SIZE, 200).astype(np.int32)]

Logits = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Tiny:
    path: Path
    checkpoint: Checkpoint
    weights: Mapping[str, Any]
    expected: Logits  # transformers' float32 logits of IDS
    exact: dict[tuple[str, str], Quantized] = dataclasses.field(default_factory=dict)  # what `exact_of` made


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("tensorrt") / request.param
    write_checkpoint(path, request.param)
    checkpoint = open_checkpoint(path)
    return Tiny(path, checkpoint, dict(checkpoint.weights), Reference.load(path).logits(IDS))


def defined(tiny: Tiny, precision: str, **options: Any) -> Defined:
    """In fp8 the last layer's up projection stays in 16 bits, as that of a model's last 22 layers does."""
    return define_network(
        tiny.checkpoint.spec,
        tiny.weights,
        precision,
        cache_length=CACHE_LENGTH,
        num_candidates=LIMITS.num_candidates,
        texts=CALIBRATION,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class Quantized:
    """transformers, quantised as a network is: its logits of IDS, and what it rounded on the way."""

    logits: Logits
    rows: RecordedRows


def quantized(tiny: Tiny, precision: str, scales: Mapping[tuple[str, ...], Any], kv_dtype: str = "bf16") -> Quantized:
    reference, rows = Reference.load(tiny.path), RecordedRows()
    quantize_reference(reference, tiny.checkpoint.spec, precision, scales, rows.record, kv_dtype)
    return Quantized(reference.logits(IDS), rows)


def exact_of(tiny: Tiny, precision: str, kv_dtype: str) -> Quantized:
    """transformers, quantised as the network of `tiny` is; made once."""
    if (precision, kv_dtype) not in tiny.exact:
        scales = defined(tiny, precision, kv_dtype=kv_dtype).scales
        tiny.exact[precision, kv_dtype] = quantized(tiny, precision, scales, kv_dtype)
    return tiny.exact[precision, kv_dtype]


def lowering_error(made: Defined, exact: Quantized, intercept: Intercept | None = None) -> float:
    """Of the network computed precisely; without `intercept` rounding ties fall as in `exact`."""
    return largest_difference(precise_runner(made, intercept or exact.rows.intercept), exact.logits)


def precise_runner(made: Defined, intercept: Intercept) -> NetworkRunner:
    return NetworkRunner(made, LIMITS, cache_length=CACHE_LENGTH, precise=True, intercept=intercept)


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


@pytest.fixture(autouse=True)
def one_kept_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_linear, "FP8_KEPT_UP_LAYERS", 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_network_is_the_model(tiny: Tiny, precision: str, parity_table: ParityTable) -> None:
    made = defined(tiny, precision)
    difference = lowering_error(made, quantized(tiny, precision, made.scales))
    typed = largest_difference(NetworkRunner(made, LIMITS, cache_length=CACHE_LENGTH), tiny.expected)
    parity_table[tiny.checkpoint.spec.family, precision] = (difference, typed)
    assert difference < EXACT
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


def without_a_mask(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    visible = Attention._visible

    def all_seen(attention: Attention, *arguments: Any) -> Any:
        seen = visible(attention, *arguments)
        return attention._network.binary("OR", seen, attention._network.unary("NOT", seen))

    monkeypatch.setattr(Attention, "_visible", all_seen)
    return tiny


def shifted_mask(by: int) -> Break:
    """A token sees `by` positions more, or fewer, than its own."""

    def broken(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
        visible = Attention._visible

        def shifted(attention: Attention, position_ids: Any, key_positions: Any, repeats: int) -> Any:
            network = attention._network
            moved = network.binary("SUM", position_ids, network.constant("shift", np.full((1, 1), by, np.int32)))
            return visible(attention, moved, key_positions, repeats)

        monkeypatch.setattr(Attention, "_visible", shifted)
        return tiny

    return broken


def as_many_for_every_row(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Each row reads as far as the one that stands farthest."""
    visible = Attention._visible

    def farthest(attention: Attention, position_ids: Any, key_positions: Any, repeats: int) -> Any:
        network = attention._network
        largest = network.reduce("MAX", network.cast(position_ids, np.float32), axis=0)
        none = network.binary("SUB", position_ids, position_ids)
        spread = network.binary("SUM", none, network.cast(largest, np.int32))
        return visible(attention, spread, key_positions, repeats)

    monkeypatch.setattr(Attention, "_visible", farthest)
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
    ("mask dropped", "bf16", without_a_mask),
    ("mask a position too far", "bf16", shifted_mask(1)),
    ("mask a position too short", "bf16", shifted_mask(-1)),
    ("mask of the farthest row", "bf16", as_many_for_every_row),
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
    exact = exact_of(tiny, precision, "bf16")
    made = defined(breaks(tiny, monkeypatch), precision)
    try:
        difference = lowering_error(made, exact)
    except ValueError as error:
        assert "never written" in str(error) or "sees none" in str(error)
    else:
        assert difference > 100 * EXACT


# ---- an activation on a rounding tie is no fault, and the smallest fault is one


NUDGE = 1e-6  # relative: more than noise of float32, less than what makes a row another one


@pytest.mark.parametrize("site", ["layers.0.query+key+value", "layers.0.down"])
@pytest.mark.parametrize("tiny", ["llama", "glm"], indirect=True)
def test_an_activation_on_a_rounding_tie_is_no_fault(tiny: Tiny, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last bit up or down: one of the two rounds the activation as transformers does not."""
    made = on_a_tie(tiny, site, monkeypatch)
    exact = quantized(tiny, "fp8", made.scales, "fp16")
    alone = [lowering_error(made, exact, nudged(by)) for by in (NUDGE, -NUDGE)]
    recorded = [lowering_error(made, exact, nudged(by, exact.rows.intercept)) for by in (NUDGE, -NUDGE)]
    assert max(alone) > 10 * EXACT
    assert max(recorded) < EXACT


def nudged(by: float, then: Intercept = lambda layer, inputs: inputs) -> Intercept:
    """All that is quantised is moved by a few last bits."""

    def intercept(layer: Layer, inputs: Inputs) -> Inputs:
        if layer.kind == "QUANTIZE":
            inputs = (required(layer, inputs, 0) * np.float32(1 + by), *inputs[1:])
        return then(layer, inputs)

    return intercept


def on_a_tie(tiny: Tiny, site: str, monkeypatch: pytest.MonkeyPatch) -> Defined:
    """An fp8 network whose scale at `site` puts one activation of the fourth token between two steps of E4M3."""
    calibrated = defined(tiny, "fp8", kv_dtype="fp16")
    (group,) = (group for group in calibrated.scales if title_of(group) == site)
    row, step = np.abs(quantized_rows(calibrated, site)[3]), calibrated.scales[group] / FP8_LARGEST
    number = row[np.abs(row / step - 200).argmin()]
    tied = np.float32(number / between_steps(number / step))
    monkeypatch.setattr(Network, "constant", changed_constant(f"{site}.input_scale", lambda x: np.full_like(x, tied)))
    return dataclasses.replace(
        defined(tiny, "fp8", kv_dtype="fp16"), scales={**calibrated.scales, group: float(tied) * FP8_LARGEST}
    )


def quantized_rows(made: Defined, site: str) -> Any:
    """What is quantised at `site` of the first tokens of IDS."""
    seen = []

    def intercept(layer: Layer, inputs: Inputs) -> Inputs:
        if layer.kind == "QUANTIZE" and layer.reads[1].startswith(f"{site}.input_scale"):
            seen.append(required(layer, inputs, 0))
        return inputs

    parity.prefill(precise_runner(made, intercept), IDS[:5], slot=0, chunk=5)
    return seen[0][0]


def between_steps(x: float) -> float:
    """The middle of the two numbers of E4M3 that `x` is between."""
    distance = 2.0 ** (np.floor(np.log2(x)) - 3)
    return float((np.floor(x / distance) + 0.5) * distance)


def changed_constant(name: str, change: Callable[[Any], Any]) -> Callable[[Network, str, Any], Any]:
    """`Network.constant` with other values for the constant `name`."""
    constant = Network.constant
    return lambda network, given, x: constant(network, given, change(x) if given == name else x)


def larger(x: Any, *, at: int | None = None) -> Any:
    """`x`, or only its number `at`, larger by a thousandth."""
    factor = np.ones(x.shape, np.float32)
    factor[... if at is None else at] = 1.001
    return x * factor


def a_step_smaller(x: Any, *, at: tuple[int, int]) -> Any:
    """E4M3 numbers with one of them a step nearer to zero."""
    bits = x.view(np.uint8).copy()
    bits[at] -= 1
    return bits.view(x.dtype)


SMALL_FAULTS: list[tuple[str, Callable[[Any], Any]]] = [
    *((f"layers.1.{title}.input_scale", larger) for title in ("query+key+value", "output", "gate", "down")),
    ("layers.0.up.input_scale", larger),
    ("layers.0.query+key+value.weight_scale", functools.partial(larger, at=17)),
    ("layers.1.output.weight_scale", functools.partial(larger, at=17)),
    ("layers.1.down.weight_scale", functools.partial(larger, at=30)),
    ("layers.0.gate.weight", functools.partial(a_step_smaller, at=(17, 17))),
    ("layers.1.down.weight", functools.partial(a_step_smaller, at=(30, 30))),
]


@pytest.mark.parametrize(("name", "change"), SMALL_FAULTS, ids=[name for name, _ in SMALL_FAULTS])
@pytest.mark.parametrize("tiny", ["llama", "glm4"], indirect=True)
def test_a_small_fault_in_fp8_is_caught(
    tiny: Tiny, name: str, change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scale wrong by a thousandth, or one weight by a step."""
    exact = exact_of(tiny, "fp8", "fp16")
    monkeypatch.setattr(Network, "constant", changed_constant(name, change))
    assert lowering_error(defined(tiny, "fp8", kv_dtype="fp16"), exact) > EXACT


def test_smollm2_as_typed(parity_table: ParityTable) -> None:
    """The real model in bfloat16: a prompt's logits and the tokens that follow it, which lead by little now and then.

    Last bits decide millions of roundings: the logits are 0.7% to 3.5% off, nearly all of it the same for every token.
    """
    path, name = resolve("smollm2")
    source, reference = open_checkpoint(path, name=name), Reference.load(path)
    limits = Limits(num_slots=1, max_length=63, prefill_chunk=48, vocab_size=source.spec.vocab_size, num_candidates=64)
    made = define_network(source.spec, source.weights, "bf16", cache_length=64, num_candidates=64)
    runner = NetworkRunner(made, limits, cache_length=64)
    prompt = np.array(Tokenizer.from_str(source.tokenizer.decode()).encode(TEXTS["english"]).ids[:24], np.int32)
    difference = relative(parity.prefill(runner, prompt, 0, chunk=24), reference.logits(prompt)[-1])
    parity_table["smollm2", "bf16"] = (float("nan"), difference)
    assert difference < 0.06
    (tokens,) = parity.greedy(runner, [prompt], 16)
    rows = reference.logits(np.concatenate([prompt, tokens]))[len(prompt) - 1 : -1]
    behind = rows.max(axis=1) - rows[np.arange(16), tokens]
    assert behind.max() < 0.2, "of logits whose root mean square is 6"
