"""The fixed text that the parity gate measures on: English, Chinese and code, written for it."""

from __future__ import annotations

from pathlib import Path


def _text(name: str) -> str:
    return (Path(__file__).parent / "texts" / f"{name}.txt").read_text(encoding="utf-8")


TEXTS = {"english": _text("english"), "chinese": _text("chinese"), "code": _text("code")}
