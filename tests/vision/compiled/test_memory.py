"""The library that reads images under AddressSanitizer and UndefinedBehaviorSanitizer: whatever a file holds, nothing
outside of a buffer is read or written."""

from __future__ import annotations

import pytest
from autoglm_export import compiler

from tests.support.export.sanitizers import SANITIZED, run_sanitized

pytestmark = [pytest.mark.parity, pytest.mark.slow]

READ = """
import sys, zlib
from io import BytesIO
from pathlib import Path
import numpy as np
from PIL import Image
from autoglm_engine.vision.compiled import Passes, PixelLibrary
from tests.support.vision.settings import vision_settings
from tests.vision.compiled.test_pictures import filtered, noise, png

library, rng, num_read = PixelLibrary(Path(sys.argv[1])), np.random.default_rng(0), 0
levels = ((9, zlib.Z_DEFAULT_STRATEGY), (0, zlib.Z_DEFAULT_STRATEGY), (9, zlib.Z_FIXED), (6, zlib.Z_RLE))
packers = [zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy) for level, strategy in levels]
sizes = [(1, 1), (1, 700), (3, 5), (40, 31), (60, 700)]

def read(content):
    global num_read
    with Image.open(BytesIO(content)) as image:
        num_read += library.read(content, image) is not None

for height, width in sizes:
    for channels, colour_type in ((3, 2), (4, 6)):
        raw = filtered(noise(height, width, channels), [0, 1, 2, 3, 4])
        for packer in packers:
            stream = (packer := packer.copy()).compress(raw) + packer.flush()
            read(png(width, height, colour_type, stream, size=1000))
            for _ in range(60):
                damaged = bytearray(stream)
                for _ in range(rng.integers(1, 4)):
                    place = int(rng.integers(0, min(len(damaged), 10 ** int(rng.integers(1, 6)))))
                    damaged[place] ^= 1 << int(rng.integers(0, 8))
                cut = int(rng.integers(0, len(damaged))) if rng.random() < 0.2 else len(damaged)
                read(png(width, height, colour_type, bytes(damaged[:cut])))

resizes = [(1, 1, 28, 28), (28, 4, 56, 28), (90, 7, 28, 28), (33, 700, 56, 28), (700, 33, 28, 84)]
for height, width, rows, columns in resizes:
    for passes in (Passes.ROWS, Passes.COLUMNS):
        resized = library._resized(noise(height, width, 3), (rows, columns), passes)
        library.cut(resized, vision_settings())
print("read", num_read)
"""


@pytest.mark.parametrize("target", compiler.runnable_targets(), ids=lambda target: target.name)
def test_nothing_outside_of_a_buffer_is_touched(target: compiler.Target) -> None:
    said, num_read = run_sanitized(
        READ, str(compiler.build(compiler.PIXELS_SOURCE, target, extra_options=SANITIZED))
    ).split()
    assert said == "read" and int(num_read) >= 40, "every undamaged file is read"
