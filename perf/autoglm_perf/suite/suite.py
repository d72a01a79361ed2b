"""Runs experiments one after the other; one that fails or cannot run is reported so, and stops no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .context import Context
from .experiment import Description, Experiment, Found


class CannotRun(RuntimeError):
    """This machine lacks what the experiment needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Result:
    """`found` is None where it failed or was skipped; `reason` says why then."""

    description: Description
    status: str  # measured, skipped or failed
    seconds: float
    found: Found | None = None
    reason: str = ""


def run_all(
    experiments: Sequence[Experiment], context: Context, done: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    results = []
    for number, experiment in enumerate(experiments, 1):
        context.say(f"[{number}/{len(experiments)}] {experiment.description.title}")
        results.append(run_one(experiment, context))
        done(results[-1])
    return results


def run_one(experiment: Experiment, context: Context) -> Result:
    started = time.monotonic()
    try:
        found = experiment.run(context)
    except CannotRun as error:
        return Result(experiment.description, "skipped", time.monotonic() - started, reason=str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Result(experiment.description, "failed", time.monotonic() - started, reason=reason)
    return Result(experiment.description, "measured", time.monotonic() - started, found)
