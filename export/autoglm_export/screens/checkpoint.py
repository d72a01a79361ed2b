"""Where the trained model lies: a checkpoint as any other, `autoglm export` reads it."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "model"
