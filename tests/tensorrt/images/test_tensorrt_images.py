"""A decoder that takes images, lowered to TensorRT: its network against transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from autoglm_engine.core import ImageSpan, Span, StepBatch
from autoglm_engine.runners.base import Limits, run_step
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.model.spec import ModelSpec
from autoglm_export.tensorrt.images import ImageInputs
from autoglm_export.tensorrt.profiles import feature_rows_of

from tests.support.export.image_prompts import ImagePrompt
from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_glm4v import image_file
from tests.support.tensorrt.network_runner import NetworkRunner
from tests.support.tensorrt.tensorrt_networks import Defined, define_network

pytestmark = pytest.mark.tensorrt

LIMITS = Limits(num_slots=3, max_length=96, prefill_chunk=64, vocab_size=288, num_candidates=8)
CACHE_LENGTH = 112
EXACT = 1e-5  # relative L2 of the worst row, of a network computed precisely
FILES = [image_file(56, 84, seed=1), image_file(84, 56, seed=2), image_file(56, 140, seed=3)]
NUM_DECODED = 3  # tokens at each prompt's end that come one by one


@dataclasses.dataclass(frozen=True)
class Case:
    prompt: ImagePrompt
    expected: npt.NDArray[np.float32]  # transformers' logits after each token


@dataclasses.dataclass(frozen=True)
class Tiny:
    family: SeeingModel
    checkpoint: Checkpoint
    cases: dict[int, Case]  # by the number of images


@pytest.fixture(scope="module", params=SEEING)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Weights that bfloat16 holds, so that nothing but the lowering is between the two."""
    folder, family = tmp_path_factory.mktemp(request.param), SEEING[request.param]
    model = family.write(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(folder)
    cases = {count: case(family, model, FILES[:count]) for count in (0, 1, 3)}
    return Tiny(family, open_checkpoint(folder), cases)


def case(family: SeeingModel, model: Any, files: list[bytes]) -> Case:
    ids, images, features = [5, 9, 33], list[ImageSpan](), np.zeros((0, family.settings.hidden_size), np.float32)
    pixels: Any = None
    grids: Any = None
    if files:
        pixels, grids = family.pixels(files)
        with torch.inference_mode():
            seen = model.model.visual(pixels, grids)
        features = torch.cat([seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())], dim=1).numpy()
    for _, rows, columns in (grids // torch.tensor([1, 2, 2])).tolist() if files else []:
        images.append(ImageSpan(len(ids) + 1, (rows, columns), bytes(32)))
        ids += [family.begin, *[family.image] * (rows * columns), family.end, 65, 66]
    ids += [101, 7, 8, 250, 17, 3]
    inputs = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(
            input_ids=inputs,
            pixel_values=pixels,
            image_grid_thw=grids,
            mm_token_type_ids=(inputs == family.image).int(),
            use_cache=False,
        ).logits[0]
    return Case(ImagePrompt.of(ids, images, features), logits.numpy())


def defined(spec: ModelSpec, tiny: Tiny) -> Defined:
    return define_network(
        spec,
        tiny.checkpoint.weights,
        "bf16",
        cache_length=CACHE_LENGTH,
        num_candidates=LIMITS.num_candidates,
        feature_rows=feature_rows_of(LIMITS.num_slots, LIMITS.prefill_chunk),
    )


def largest_difference(
    made: Defined, cases: dict[int, Case], sizes: list[int], decoded: Callable[[Span], Span]
) -> float:
    """Of each case in chunks of `sizes`, in a slot of its own, and then of all token by token in the same steps."""
    runner = NetworkRunner(made, LIMITS, cache_length=CACHE_LENGTH, precise=True)
    differences = []

    def step(spans: list[Span]) -> None:
        for span, row in zip(spans, run_step(runner, StepBatch(tuple(spans))), strict=True):
            expected = ordered[span.slot].expected[span.start + len(span.token_ids) - 1]
            differences.append(float(np.linalg.norm(row - expected) / np.linalg.norm(expected)))

    ordered = list(cases.values())
    ends = [len(one.prompt.ids) - NUM_DECODED for one in ordered]
    for slot, (one, end) in enumerate(zip(ordered, ends, strict=True)):
        starts = np.cumsum([0, *sizes, *[sizes[-1]] * len(one.prompt.ids)])
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if start < end:
                step([one.prompt.span(slot, start, min(stop, end))])
    for place in range(NUM_DECODED):
        step([decoded(c.prompt.span(i, ends[i] + place, ends[i] + place + 1)) for i, c in enumerate(ordered)])
    return max(differences)


def as_it_is(span: Span) -> Span:
    return span


@pytest.mark.parametrize("sizes", [[64], [7], [6, 1, 1, 5, 1, 11]])
def test_a_network_sees_what_transformers_sees(tiny: Tiny, sizes: list[int]) -> None:
    """With 0, 1 and 3 images: whole, and in chunks that begin and end inside of images."""
    made = defined(tiny.checkpoint.spec, tiny)
    assert largest_difference(made, tiny.cases, sizes, as_it_is) < EXACT


Break = Callable[[ModelSpec, pytest.MonkeyPatch], ModelSpec]


def other_sections(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, sections=(3, 3, 2)))


def rows_for_columns(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    at = ImageInputs._at
    monkeypatch.setattr(ImageInputs, "_at", lambda inputs, name, axis, part: at(inputs, name, (0, 2, 1)[axis], part))
    return spec


def the_next_row(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    number = ImageInputs._number
    monkeypatch.setattr(ImageInputs, "_number", lambda inputs, value: number(inputs, 0 if value == -1 else value))
    return spec


def no_features(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setattr(ImageInputs, "with_features", lambda inputs, embedded: embedded)
    return spec


@pytest.mark.parametrize("breaks", [other_sections, rows_for_columns, the_next_row, no_features])
def test_a_broken_lowering_is_caught(tiny: Tiny, breaks: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = defined(breaks(tiny.checkpoint.spec, monkeypatch), tiny)
    assert largest_difference(broken, tiny.cases, [64], as_it_is) > 100 * EXACT
    texts = {0: tiny.cases[0]}
    assert largest_difference(broken, texts, [64], as_it_is) < EXACT, "a text alone does not show it"


def not_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageInputs, "with_more_features", lambda inputs, x, part: x)


def another_part(monkeypatch: pytest.MonkeyPatch) -> None:
    part_of = ImageInputs._part
    monkeypatch.setattr(ImageInputs, "_part", lambda inputs, part: part_of(inputs, (0, 2, 1)[part]))


def to_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts too; their rows of the gathered features are the block's first."""
    monkeypatch.setattr(
        ImageInputs,
        "with_more_features",
        lambda inputs, x, part: inputs._network.binary("SUM", x, inputs._part(part)),
    )


@pytest.mark.parametrize("tiny", ["qwen3_vl"], indirect=True)
@pytest.mark.parametrize("breaks", [not_added, another_part, to_every_row])
def test_features_that_go_astray_behind_a_layer_are_caught(
    tiny: Tiny, breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    assert largest_difference(defined(tiny.checkpoint.spec, tiny), tiny.cases, [64], as_it_is) > 100 * EXACT


@pytest.mark.parametrize("moved", [1, -1, None])
def test_a_wrong_place_at_decode_is_caught(tiny: Tiny, moved: int | None) -> None:
    """One off; and the token's index, as of a text."""
    made = defined(tiny.checkpoint.spec, tiny)

    def misplaced(span: Span) -> Span:
        positions = None if moved is None or span.positions is None else span.positions + np.int32(moved)
        return dataclasses.replace(span, positions=positions)

    seeing = {count: one for count, one in tiny.cases.items() if count}
    assert largest_difference(made, seeing, [64], as_it_is) < EXACT
    assert largest_difference(made, seeing, [64], misplaced) > 100 * EXACT
