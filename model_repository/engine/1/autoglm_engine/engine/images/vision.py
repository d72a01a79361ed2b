"""Whoever computes the features of images: the seam to the model `vision`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoglm_engine.core import Features

Encode = Callable[[bytes, tuple[int, int]], Features]
"""An image's file and its grid -> its features, float32 [rows * columns, hidden_size]. May wait; raises EngineError."""


@dataclass(slots=True)
class Vision:
    """`encode` is called on one thread, for one image at a time. `wake` is called, there too, when one is encoded; to
    be set before the first request."""

    encode: Encode
    hidden_size: int
    wake: Callable[[], object] = lambda: None
