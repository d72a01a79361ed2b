"""The fixed text that weight rounding is fitted to: prose, questions and answers, Chinese, code and data, written for
it.

Nothing of it occurs in the text that the parity gate measures on.
"""

from __future__ import annotations

from pathlib import Path

from autoglm_export.errors import InvalidOption


def _text(name: str) -> str:
    return (Path(__file__).parent / "texts" / f"{name}.txt").read_text(encoding="utf-8")


TEXTS = (_text("prose"), _text("dialogue"), _text("chinese"), _text("code"))


def texts_of(file: Path | None) -> tuple[str, ...]:
    """The texts to calibrate on: a file of the user's (UTF-8), or the built-in ones."""
    if file is None:
        return TEXTS
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"the calibration text {file} cannot be read: {error}") from None
    if not text.strip():
        raise InvalidOption(f"the calibration text {file} is empty")
    return (text,)
