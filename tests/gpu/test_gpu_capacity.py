"""Attention at the capacities that are served, in each form, beside poison: the card against torch on the same card.

A form that fails here is one that an export does not take (`autoglm_export.parity.device_trial`); that the form it does
take is right is tested, too. Fused attention that is wrong is no failure of ours, so it is told and skipped, not
failed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from autoglm_engine.errors import WrongOnThisGpu
from autoglm_engine.runners.cuda.bindings import CudaBindings
from autoglm_engine.runners.device_check.loading import check_here
from autoglm_engine.runners.tensorrt.module import load_module
from autoglm_export.errors import ExportError
from autoglm_export.tensorrt.attention import FORMS

from tests.gpu.available import Available
from tests.gpu.capacity import BOUNDS, build, errors, opened, record, spec_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

CAPACITIES = (8192, 25_600)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_length_beside_poison(
    form: str, capacity: int, precision: str, here: Available, tmp_path: Path
) -> None:
    if here.runtime not in ("tensorrt", "tensorrt-rtx"):
        pytest.skip(here.why_not(precision) or f"the runtime {here.runtime} has no forms of attention")
    try:
        built = build(tmp_path, spec_of(capacity), runtime=here.runtime, precision=precision, form=form)
    except ExportError as error:
        record(form=form, capacity=capacity, precision=precision, failure=str(error))
        if form == FORMS[-1]:
            raise
        pytest.skip(f"no engine with {form} attention: {error}")
    details = built.manifest.runtime_details
    with opened(built, load_module(details["module"], built.manifest.runtime_version), CudaBindings()) as parts:
        found = errors(built, *parts)
    record(form=form, capacity=capacity, precision=precision, errors=found, bound=BOUNDS[precision])
    wrong = {kind: rows for kind, rows in found.items() if not max(rows.values()) <= BOUNDS[precision]}
    if wrong:  # then the check that guards an export must say so, too
        with pytest.raises(WrongOnThisGpu):
            check_here(built.folder, built.manifest)
        if form != FORMS[-1]:
            pytest.skip(f"{form} attention is wrong on this GPU, and refused: {wrong}")
    assert not wrong, "the last resort must be right everywhere"
    assert check_here(built.folder, built.manifest)["worst_error"] <= BOUNDS[precision]
