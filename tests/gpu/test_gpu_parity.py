"""The artifact on the GPU computes what transformers computes in float32 on the same GPU.

The bounds on random weights are a little over what the same networks give when numpy computes them as typed
(tests/tensorrt/test_tensorrt_parity.py); they were not yet measured on a card.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from autoglm_export.checkpoint.bundled import find_bundled
from autoglm_export.parity.gate import BOUNDS
from autoglm_export.parity.text import TEXTS

from tests.gpu.available import Available
from tests.gpu.gpu_models import (
    GpuReference,
    Ids,
    Make,
    candidates,
    export_for_gpu,
    greedy,
    load_on_gpu,
    loss,
    prefill,
    relative,
    span,
    teacher_forced,
)
from tests.support.export.tiny_models import FAMILIES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

PRECISIONS = ("bf16", "fp16", "fp8", "int4")
MAX_RELATIVE_L2 = {"fp16": 0.03, "bf16": 0.06, "fp8": 0.4, "int4": 0.9}
# SmolLM2's published weights have 4 bits on a grid of their own: in int4 it loses more than the gate would let pass.
MAX_PERPLEXITY_RATIO = {name: BOUNDS[name]["perplexity_ratio"] for name in ("fp16", "bf16", "fp8")} | {"int4": 1.35}
PROMPT_TOKENS = 24


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_decode_prefill_and_chunks_agree_with_transformers(
    family: str, precision: str, tiny_on_gpu: Make, ids: Ids
) -> None:
    model = tiny_on_gpu(family, precision)
    expected, bound = model.reference.logits(ids), MAX_RELATIVE_L2[precision]
    assert relative(teacher_forced(model.runner, ids), expected) < bound
    for slot, chunk in ((1, 32), (2, 7), (7, 31)):
        assert relative(prefill(model.runner, ids, slot, chunk), expected[-1]) < bound


@pytest.mark.parametrize("precision", PRECISIONS)
def test_candidates_are_the_largest_logits(precision: str, tiny_on_gpu: Make, ids: Ids) -> None:
    model = tiny_on_gpu("glm4", precision)
    found = candidates(model.runner, span(3, 0, ids[:20]))
    if found is None:
        pytest.skip(f"the runtime {model.manifest.runtime} gives whole logits")
    row = found.full_row(0)
    count = found.token_ids.shape[1]
    np.testing.assert_array_equal(row[found.token_ids[0]], found.logits[0])
    np.testing.assert_array_equal(found.logits[0], np.sort(row)[::-1][:count])
    exact = np.log(np.exp(row.astype(np.float64) - row.max()).sum()) + row.max()
    assert found.log_sum_exp[0] == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_smollm2_keeps_its_perplexity(precision: str, here: Available, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    if (reason := here.why_not(precision)) is not None:
        pytest.skip(reason)
    manifest = export_for_gpu("smollm2", tmp_path / "a", str(here.runtime), precision, max_slots=4, max_length=512)
    tokenizer = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    texts = [np.array(tokenizer.encode(text).ids[:448], np.int32) for text in TEXTS.values()]
    reference = GpuReference.load(find_bundled("smollm2"))
    runner = load_on_gpu(tmp_path / "a", manifest)
    try:
        excess = [loss(teacher_forced(runner, ids), ids) - loss(reference.logits(ids), ids) for ids in texts]
        weights = [len(ids) - 1 for ids in texts]
        assert float(np.exp(np.average(excess, weights=weights))) < MAX_PERPLEXITY_RATIO[precision]
        answer = greedy(runner, {0: texts[0][:PROMPT_TOKENS]}, 32)[0]
    finally:
        runner.close()
    assert len(set(answer)) > 5, "it does not repeat itself"
