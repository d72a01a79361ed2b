"""`--runtime auto` made concrete: of the runtimes that can be built here, the one that serves a typical request
faster."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoglm_export.artifact import Options
from autoglm_export.compiler import can_build_here, find_compiler
from autoglm_export.errors import ExportError, UnsupportedModel
from autoglm_export.model.spec import ModelSpec
from autoglm_export.runtime_shapes import check_shape
from autoglm_export.runtimes import AUTO, Progress, check_installed, runtime_named

from .timing import ANSWER_TOKENS, PROMPT_TOKENS, Measured

CANDIDATES = ("native", "onnx")  # what runs on a CPU; the first of equals is taken: native verifies drafts, too
TIE = 0.05  # of the time of a request: less is within what measuring again changes

Measure = Callable[[Sequence[Options], ModelSpec, Path, Progress], Measured]

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+")  # the manifest names no path of the exporting machine


@dataclass(frozen=True, slots=True)
class Candidates:
    """The runtimes that the user's wish leaves; at least one. `left_out`: why another one is not among them."""

    names: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    plan: Options
    left_out: dict[str, str]
    measured: Measured | None  # None: there was nothing to choose from

    def as_json(self) -> dict[str, Any]:
        """`runtime_details["auto"]` of the manifest."""
        told: dict[str, Any] = {"chosen": self.plan.runtime, "left_out": self.left_out, "measured": {}}
        if self.measured and self.measured.timings:
            told["measured"] = {name: _times(self.measured, name) for name in self.measured.timings}
            told |= {
                "request": {"prompt_tokens": PROMPT_TOKENS, "answer_tokens": ANSWER_TOKENS},
                "prefill_tokens": self.measured.workload.num_prompt_tokens,
                "decode_sequences": self.measured.workload.num_sequences,
                "num_layers": self.measured.num_layers,
                "num_threads": self.measured.num_threads,
            }
        return told


def candidates(name: str, precision: str | None) -> Candidates:
    """Of `auto`, all that can be built here in `precision`; another name is its own choice. Raises ExportError for
    none."""
    if name != AUTO:
        runtime_named(name, precision)
        return Candidates((name,))
    errors = {name: error for name in CANDIDATES if (error := _obstacle(name, precision))}
    names = tuple(name for name in CANDIDATES if name not in errors)
    if not names:
        raise errors[CANDIDATES[-1]]
    return Candidates(names, {name: _reason(error) for name, error in errors.items()})


def fitting(offered: Candidates, spec: ModelSpec, precision: str | None) -> Candidates:
    """Those of `offered` that compute a model of this shape. Raises UnsupportedModel where none does."""
    errors = {name: error for name in offered.names if (error := _misfit(name, spec, precision))}
    names = tuple(name for name in offered.names if name not in errors)
    if not names:
        raise errors[offered.names[-1]]
    return Candidates(names, {**offered.left_out, **{name: _reason(error) for name, error in errors.items()}})


def choose(
    plans: Sequence[Options],
    left_out: Mapping[str, str],
    spec: ModelSpec,
    folder: Path,
    progress: Progress,
    measure: Measure,
) -> Choice:
    """The best of `plans`. Where there are several, `measure` times them, with files in `folder`.

    One that fails there is left out; where all do, what the last one failed with is raised.
    """
    if len(plans) == 1:
        return Choice(plans[0], dict(left_out), None)
    measured = measure(plans, spec, folder, progress)
    if not (rest := [plan for plan in plans if plan.runtime not in measured.failures]):
        raise measured.failures[plans[-1].runtime]
    failed = {name: _reason(error) for name, error in measured.failures.items()}
    return Choice(_best(rest, measured) if len(rest) > 1 else rest[0], {**left_out, **failed}, measured)


def _best(plans: Sequence[Options], measured: Measured) -> Options:
    """The first that is as fast as the fastest one, to within TIE."""
    least = min(_request_ms(measured, plan.runtime) for plan in plans)
    return next(plan for plan in plans if _request_ms(measured, plan.runtime) <= least * (1 + TIE))


def _obstacle(name: str, precision: str | None) -> ExportError | None:
    """Why the runtime cannot be built here in `precision`."""
    try:
        check_installed(name, precision)
        if name == "native":
            _check_native()
    except ExportError as error:
        return error
    return None


def _misfit(name: str, spec: ModelSpec, precision: str | None) -> UnsupportedModel | None:
    try:
        check_shape(spec, name, precision or runtime_named(name, precision).default_precision)
    except UnsupportedModel as error:
        return error
    return None


def _check_native() -> None:
    if not can_build_here():
        find_compiler()  # says what is missing
        raise ExportError("the native runtime needs Linux on x86-64")


def _request_ms(measured: Measured, runtime: str) -> float:
    return measured.timings[runtime].request_ms(measured.workload)


def _times(measured: Measured, runtime: str) -> dict[str, float]:
    times = {**dataclasses.asdict(measured.timings[runtime]), "request_ms": _request_ms(measured, runtime)}
    return {name: round(value, 2) for name, value in times.items()}


def _reason(error: Exception) -> str:
    """One line."""
    lines = str(error).strip().splitlines()
    return _FOLDERS.sub("", lines[0]) if lines else type(error).__name__
