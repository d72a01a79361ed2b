"""A block of the tower, its mergers and the first layers of the decoder at their published widths, through an export in
float32, against transformers: what small models cannot show, sums over thousands of numbers and heads of real shapes.

Weights are random and the vocabulary is small. Of GLM-4.1V-9B, and of Qwen3-VL-4B with a deepstack block.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import ImageSpan, StepBatch
from autoglm_engine.runners.base import run_step
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.vision.processor import preprocess
from autoglm_export.export import export

from tests.support.export.image_prompts import ImagePrompt
from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_glm4v import image_file

pytestmark = [pytest.mark.parity, pytest.mark.slow]

WIDTHS: dict[str, dict[str, Any]] = {
    "glm4v": {
        "vision": {
            "depth": 1,
            "hidden_size": 1536,
            "num_heads": 12,
            "out_hidden_size": 4096,
            "intermediate_size": 13696,
            "image_size": 336,
        },
        "text": {
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 1,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [8, 12, 12],
                "partial_rotary_factor": 0.5,
            },
        },
    },
    "qwen3_vl": {
        "vision": {
            "depth": 1,
            "hidden_size": 1024,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "intermediate_size": 4096,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0],
        },
        "text": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 2,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
    },
}
LIMITS: dict[str, Any] = {"max_slots": 1, "max_length": 96, "prefill_chunk": 32}
IMAGE = image_file(160, 224)
NUM_ANSWERED = 3


@dataclass(frozen=True)
class Expected:
    """transformers': features of the image, the prompt, and the logits after it and after each greedy token."""

    features: Any
    ids: list[int]
    logits: Any


@pytest.mark.parametrize("name", WIDTHS)
def test_an_export_of_the_published_widths_is_transformers(name: str, tmp_path: Path) -> None:
    family = SEEING[name]
    expected = of_transformers(family, family.write(tmp_path / "checkpoint", **WIDTHS[name]))
    artifact = tmp_path / "artifact"
    manifest = export(
        tmp_path / "checkpoint",
        artifact,
        runtime="onnx",
        precision="fp32",
        max_slots=1,
        max_length=96,
        prefill_chunk=32,
    )
    with closing(open_tower(artifact, manifest, num_threads=2)) as tower:
        patches = preprocess(IMAGE, tower.settings)
        features = tower.encode(patches)
        rows, columns = (side // tower.settings.merge_size for side in patches.grid)
    assert distance(features, expected.features) < 1e-4
    prompt = ImagePrompt.of(expected.ids, [ImageSpan(3, (rows, columns), bytes(32))], features)
    with closing(load_runner(artifact, manifest, num_threads=2)) as runner:
        found = [run_step(runner, StepBatch((span,))).copy() for span in prompt.chunks(0, [19])][-1:]
        for row in expected.logits[:-1]:
            prompt = prompt.continued(int(row.argmax()))
            found.append(run_step(runner, StepBatch((prompt.span(0, len(prompt.ids) - 1, len(prompt.ids)),))).copy())
    assert distance(np.concatenate(found), expected.logits) < 1e-3


def of_transformers(family: SeeingModel, model: Any) -> Expected:
    import torch

    pixels, grid = family.pixels([IMAGE])
    with torch.inference_mode():
        seen = model.model.visual(pixels, grid)
    parts = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
    features = torch.cat(parts, dim=1).numpy()
    ids = [5, 9, family.begin, *[family.image] * len(features), family.end, 65, 66, 101]
    return Expected(features, ids, family.logits(model, ids, [IMAGE], NUM_ANSWERED))


def distance(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
