"""The native decoder under AddressSanitizer and UndefinedBehaviorSanitizer: over odd shapes it reads and writes nothing
outside of its buffers, and nothing of what lay in them before changes a number."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from autoglm_export import compiler

from tests.support.export.sanitizers import SANITIZED, run_sanitized

pytestmark = [pytest.mark.parity, pytest.mark.slow]

_HEADER = Path(__file__).parent.parent / "support" / "export" / "checked_memory.h"

# Both libraries compute the same steps of each shape; the checked one's memory is full of other numbers at first.
COMPARE = """
import sys, tempfile
from pathlib import Path
import numpy as np
np.memmap = lambda path, dtype, mode: np.fromfile(path, dtype)  # weights whose end the sanitizer knows
from autoglm_engine.core import Span
from autoglm_export.native.lowering import write_program
from tests.support.export.odd_shapes import ODD_SHAPES
from tests.runners.test_native import LIBRARY_NAME, NativeRunner, in_chunks, manifest_of, random_weights, step

def logits(folder, spec, library, ids):
    (folder / LIBRARY_NAME).unlink(missing_ok=True)
    (folder / LIBRARY_NAME).write_bytes(Path(library).read_bytes())
    runner = NativeRunner(folder, manifest_of(spec), num_threads=2)
    rows = in_chunks(runner, ids[:133], 0, [90, 1, 42])
    runner.copy_prefix(0, 4, 131)
    others = [Span(slot, 0, ids[slot : slot + 96], True, num_drafts=16) for slot in (1, 2, 3)]
    rows += list(step(runner, Span(4, 131, ids[131:135], True), *others))
    rows += list(step(runner, Span(0, 133, ids[133:134], True), Span(4, 135, ids[135:160], True)))
    rows += in_chunks(runner, ids, 3, [96])
    runner.close()
    return np.array(rows)

for seed, (name, spec) in enumerate(ODD_SHAPES.items()):
    ids = np.random.default_rng(seed).integers(0, spec.vocab_size, 300).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        write_program(spec, random_weights(spec), Path(folder))
        plain, checked = (logits(Path(folder), spec, library, ids) for library in sys.argv[1:])
    assert np.array_equal(plain, checked), name
print("checked", len(ODD_SHAPES))
"""


@pytest.mark.parametrize("target", compiler.runnable_targets(), ids=lambda target: target.name)
def test_nothing_outside_of_a_buffer_is_touched(target: compiler.Target) -> None:
    digest = hashlib.sha256(_HEADER.read_bytes()).hexdigest()[:16]
    checked = compiler.build(
        compiler.DECODER_SOURCE,
        target,
        extra_options=[*SANITIZED, "-include", str(_HEADER), f"-DHEADER_DIGEST=0x{digest}"],
    )
    plain = compiler.build(compiler.DECODER_SOURCE, target)
    assert run_sanitized(COMPARE, str(plain), str(checked)).startswith("checked")
