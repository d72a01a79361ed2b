"""Which marks an answer is split by: those of the model, or what the setting says."""

from __future__ import annotations

from collections.abc import Mapping

from autoglm_client import ModelLimits, ThinkingMarks

AUTO = "auto"
# Of models whose chat template shows no marks. GLM-4.1V-Thinking writes both; so does AutoGLM-Phone, whose agent reads
# them in the content.
FORMATS: Mapping[str, ThinkingMarks] = {
    "think": ThinkingMarks("<think>", "</think>"),
    "think-answer": ThinkingMarks("<think>", "</think>", "<answer>", "</answer>"),
}


def marks_of(setting: str, limits: ModelLimits) -> ThinkingMarks | None:
    """None where answers stay whole."""
    return limits.thinking if setting == AUTO else FORMATS.get(setting)
