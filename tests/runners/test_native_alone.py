"""The native CPU runtime: a token's numbers depend on its sequence alone, bit for bit, in every shape and on every
class of CPUs. What was computed before, what is computed beside it and how its sequence is cut change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Span
from autoglm_engine.runners.native.library import TARGET_VARIABLE
from autoglm_engine.runners.native.runner import MAX_ROWS, NativeRunner
from autoglm_export.model.spec import ModelSpec, RopeSpec
from autoglm_export.native.lowering import MAX_LOGITS_PER_SPAN, write_program

from tests.runners.test_native import (
    BASE,
    CHUNK,
    LIBRARY_NAME,
    SPECS,
    in_chunks,
    in_chunks_from,
    manifest_of,
    random_weights,
    step,
)
from tests.support.export.native_builds import ALL_CLASSES, library
from tests.support.export.odd_shapes import ODD_SHAPES

pytestmark = pytest.mark.parity


def _heads(count: int, size: int) -> ModelSpec:
    """Their outputs side by side do not fill the last panel."""
    return dataclasses.replace(BASE, num_heads=count, num_kv_heads=count, head_size=size, rope=RopeSpec(1e4, 8, False))


UNFILLED = {f"{count} x {size}": _heads(count, size) for count, size in ((6, 24), (3, 16), (9, 40), (1, 8))}
ALL_SHAPES = SPECS | UNFILLED | ODD_SHAPES
CASES = [*((name, ALL_CLASSES[0]) for name in SPECS), *product((*UNFILLED, *ODD_SHAPES), ALL_CLASSES)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The name of a shape -> its program and weights, written once."""

    @cache
    def program(name: str) -> Path:
        folder = tmp_path_factory.mktemp("program")
        write_program(ALL_SHAPES[name], random_weights(ALL_SHAPES[name]), folder)
        return folder

    return program


@pytest.fixture(scope="module", params=CASES, ids=" on ".join)
def runner(request: pytest.FixtureRequest, programs: Callable[[str], Path]) -> Iterator[NativeRunner]:
    name, target = request.param
    folder = programs(name)
    (folder / LIBRARY_NAME).unlink(missing_ok=True)  # a loaded library must not be written to
    (folder / LIBRARY_NAME).write_bytes(library(target).read_bytes())
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv(TARGET_VARIABLE, raising=False)
        native = NativeRunner(folder, manifest_of(ALL_SHAPES[name]), num_threads=1)
    yield native
    native.close()


def ids_for(runner: NativeRunner, length: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, runner.limits.vocab_size, length).astype(np.int32)


def test_the_same_prompt_twice_has_the_same_logits(runner: NativeRunner) -> None:
    """In the same slot and in another one, also after a longer sequence."""
    ids = ids_for(runner, 40)
    expected = in_chunks(runner, ids, 0, [30, 1])
    np.testing.assert_array_equal(in_chunks(runner, ids, 0, [30, 1]), expected)
    in_chunks(runner, ids_for(runner, 150, seed=7), 1, [CHUNK])
    np.testing.assert_array_equal(in_chunks(runner, ids, 1, [30, 1]), expected)


@pytest.mark.parametrize("sizes", [[1], [7, 64, 33]], ids=str)
def test_a_token_does_not_depend_on_how_its_sequence_was_cut(runner: NativeRunner, sizes: list[int]) -> None:
    """Over a length of more than one attention tile."""
    ids = ids_for(runner, 140)
    expected = in_chunks(runner, ids, 0, [CHUNK])[-1]
    np.testing.assert_array_equal(in_chunks(runner, ids, 1, list(sizes))[-1], expected)


def test_a_token_does_not_depend_on_its_company(runner: NativeRunner) -> None:
    """Alone, or among chunks and single tokens of others; also in a step that is taken in parts."""
    ids = ids_for(runner, 72)
    alone = in_chunks(runner, ids, 0, [70, 1])[-2:]
    in_chunks(runner, ids[:70], 1, [35])
    for position in (70, 71):
        others = tuple(Span(slot, 0, ids_for(runner, CHUNK, position + slot), slot == 3) for slot in (2, 3, 4))
        assert sum(len(span.token_ids) for span in others) > MAX_ROWS
        logits = step(runner, *others[:2], Span(1, position, ids[position : position + 1], True), others[2])
        np.testing.assert_array_equal(logits[1], alone[position - 70])


def test_a_token_does_not_depend_on_whose_prefix_was_copied(runner: NativeRunner) -> None:
    ids = ids_for(runner, 140)
    expected = in_chunks(runner, ids, 0, [CHUNK])[-1]
    in_chunks(runner, ids_for(runner, 150, seed=9), 2, [CHUNK])
    for length in (1, 45, 129):
        runner.copy_prefix(0, 2, length)
        rest = [Span(2, start, ids[start : start + 95], True) for start in range(length, len(ids), 95)]
        np.testing.assert_array_equal([step(runner, span)[0] for span in rest][-1], expected)


def test_rows_of_drafts_are_those_of_one_token_steps(runner: NativeRunner) -> None:
    """Where drafts were rejected before, in company, in a step that is taken in parts; also of a sequence's first
    step."""
    num_drafts = MAX_LOGITS_PER_SPAN - 1
    ids = ids_for(runner, 60)
    alone = in_chunks(runner, ids[:40], 0, [40]) and in_chunks_from(runner, ids, 0, 40)
    in_chunks(runner, ids[:40], 1, [40])
    step(runner, Span(1, 40, ids_for(runner, num_drafts + 1, seed=8), True, num_drafts=num_drafts))
    others = tuple(Span(slot, 0, ids_for(runner, CHUNK, seed=slot), slot == 3) for slot in (2, 3, 4))
    drafted = Span(1, 40, ids[40 : 41 + num_drafts], True, num_drafts=num_drafts)
    logits = step(runner, *others[:2], drafted, others[2])
    np.testing.assert_array_equal(logits[1:], alone[: num_drafts + 1])
    first = step(runner, Span(2, 0, ids[: num_drafts + 1], True, num_drafts=num_drafts))
    np.testing.assert_array_equal(first, in_chunks(runner, ids[: num_drafts + 1], 3, [1]))
