"""Drawn screens of phones, as an agent sends them: PNG, RGBA, full resolution, some megabytes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZES = ((540, 1200), (720, 1600), (1080, 1920), (1080, 2400), (1440, 3200))  # width, height
_WORDS = ("settings", "open", "message", "phone", "wallet", "camera", "weather", "search", "order", "pay", "confirm")
_NUM_PHOTOS = 4


def screen(width: int, height: int, seed: int) -> bytes:
    """A file: a bar, photographs with noise, lines of text and buttons. No two seeds give the same one."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (245, 246, 248))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width, height // 20), fill=_colour(rng))
    for number in range(_NUM_PHOTOS):
        place = 10 + number % 2 * (width // 2), height // 18 + number // 2 * (height // 8 + 20)
        image.paste(_photo(rng, width // 2 - 20, height // 8), place)
    _write_lines(rng, draw, width, height)
    stream = BytesIO()
    image.convert("RGBA").save(stream, "PNG")
    return stream.getvalue()


def _photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _write_lines(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    size = max(14, width // 36)
    font = ImageFont.load_default(size=size)
    top = height // 18 + _NUM_PHOTOS // 2 * (height // 8 + 20) + 10
    for y in range(top, height - 3 * size, 2 * size):
        draw.text((12, y), " ".join(rng.choice(_WORDS, 8)), fill=(30, 30, 30), font=font)
        if rng.random() < 0.2:
            box = (int(0.6 * width), y, int(0.95 * width), y + 2 * size)
            draw.rounded_rectangle(box, size // 2, fill=_colour(rng))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue
