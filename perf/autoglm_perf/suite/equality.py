"""Whether answers are right: byte for byte the ones that were given before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autoglm_perf.load.load import Answered


class AnswersDiffer(RuntimeError):
    """A figure over wrong answers says nothing."""


def first_answers(answers: Iterable[Answered]) -> dict[str, str]:
    """The first answer to each prompt; what failed is no answer."""
    found: dict[str, str] = {}
    for answer in answers:
        if answer.timing.error is None:
            found.setdefault(answer.question.prompt, answer.text)
    return found


def differing(answers: Iterable[Answered], right: Mapping[str, str]) -> list[Answered]:
    """Those whose text differs in any byte from the right one of their prompt. Raises KeyError for a prompt without
    one."""
    return [answer for answer in answers if answer.text.encode() != right[answer.question.prompt].encode()]


def require_equal(answers: Iterable[Answered], right: Mapping[str, str]) -> int:
    """How many were compared. Raises AnswersDiffer where one differs."""
    compared = list(answers)
    if wrong := differing(compared, right):
        first = wrong[0]
        raise AnswersDiffer(
            f"{len(wrong)} of {len(compared)} answers differ, the first one (cache_hit {first.cache_hit}): "
            f"{first.text!r:.80} instead of {right[first.question.prompt]!r:.80}"
        )
    return len(compared)
