"""Whoever computes the features of images: the seam to the model `vision`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoglm_engine.core import Features

Encode = Callable[[bytes, tuple[int, int], int], Features]
"""An image's file, its grid and the encode's number -> its features, float32 [rows * columns, hidden_size]. May wait;
raises EngineError."""


@dataclass(slots=True)
class Vision:
    """`encode` is called on one thread, for one image at a time, each time with a larger number. `wake` is called,
    there too, when one is encoded; to be set before the first request. `give_up` is called on any thread, and does not
    wait: nobody wants what encodes up to this number make, and `encode` may return, or raise, whatever it likes, soon.
    """

    encode: Encode
    hidden_size: int
    wake: Callable[[], object] = lambda: None
    give_up: Callable[[int], object] = lambda number: None
