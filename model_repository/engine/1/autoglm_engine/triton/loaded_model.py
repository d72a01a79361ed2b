"""What an artifact's folder becomes: a warm runner, and all that is known of the model before its first request."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoglm_engine.core import Span, StepBatch
from autoglm_engine.engine.drafter import FIXED_ROWS
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.engine.speculation.step_cost import measure_fixed_rows
from autoglm_engine.engine.stream_pacer import StreamGate
from autoglm_engine.guided.grammar import GuideCompiler
from autoglm_engine.guided.pool import GuidePool
from autoglm_engine.manifest import Manifest
from autoglm_engine.metrics import Metrics
from autoglm_engine.options.options import OptionRules
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer, verify_texts
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.tokenizer.tool_format import call_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """`limits` is what the control message of that name is answered with."""

    manifest: Manifest
    rules: OptionRules
    text: TokenText
    guides: GuidePool
    runner: Runner
    limits: dict[str, object]

    @classmethod
    def load(cls, folder: Path, settings: EngineSettings, num_threads: int) -> LoadedModel:
        """Raises ArtifactError, or InvalidRequest for settings that do not go with the artifact: before the weights are
        read, where that can be seen."""
        manifest = Manifest.load(folder)
        rules = OptionRules.of(manifest)
        num_slots = settings.num_slots(manifest.num_slots)
        verify_texts(folder, manifest)
        tokenizer = load_tokenizer(folder)
        template = ChatTemplate.load(folder, tokenizer, manifest)
        limits = {
            "max_length": manifest.max_length,
            "vocab_size": manifest.vocab_size,
            "num_slots": num_slots,
            "max_images": manifest.vision.max_images if manifest.vision else 0,
            **_template_limits(tokenizer, template),
        }
        guides = GuidePool(GuideCompiler.of(folder, manifest.vocab_size, manifest.eos_token_ids))
        runner = load_runner(folder, manifest, num_threads=num_threads, num_slots=num_slots, device=settings.device)
        manifest.check_unchanged(folder)
        warm_up(runner)
        return cls(manifest, rules, TokenText(tokenizer), guides, runner, limits)

    def engine(self, settings: EngineSettings, gate: StreamGate, metrics: Metrics, vision: Vision | None) -> Engine:
        runner = self.runner
        return Engine(
            runner,
            self.text,
            self.manifest.eos_token_ids,
            settings,
            gate=gate,
            metrics=metrics,
            vision=vision,
            fixed_rows=measure_fixed_rows(runner) if runner.limits.can_verify_drafts else FIXED_ROWS,
        )


def _template_limits(tokenizer: Tokenizer, template: ChatTemplate | None) -> dict[str, object]:
    """How the model calls functions, the tokens that calls are made of, and the marks of thinking. Raises
    ArtifactError."""
    if template is None:
        return {"call_form": None, "call_tokens": call_tokens(tokenizer, None), "thinking": None}
    try:
        form, thinking = template.call_form, template.thinking
    finally:
        template.close()
    return {
        "call_form": form.told(),
        "call_tokens": call_tokens(tokenizer, form),
        "thinking": thinking and dataclasses.astuple(thinking),
    }


def warm_up(runner: Runner) -> None:
    """Read the weights into memory and start the threads, so that the first request does not wait for that. What it
    writes into slot 0 belongs to nobody: a slot's content counts from when its owner has computed it."""
    num_tokens = min(runner.limits.prefill_chunk, runner.limits.max_length)
    prompt = np.zeros(num_tokens, dtype=np.int32)
    run_step(runner, StepBatch((Span(0, 0, prompt, wants_logits=True),)))
    run_step(runner, StepBatch((Span(0, 0, prompt[:1], wants_logits=True),)))
