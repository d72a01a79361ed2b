"""The size that an image is encoded in, and the grid of tokens that it makes.

Source: `smart_resize` of transformers' image_processing_pil_glm4v.py and image_processing_pil_qwen2_vl.py; their
floating-point steps are kept one by one, since a size next to a limit depends on their rounding.
"""

from __future__ import annotations

import math

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import MAX_ASPECT_RATIO, VisionSettings

_NEARLY = 1 + 1e-9

Size = tuple[int, int]  # height, width
Grid = tuple[int, int]  # rows, columns


def resized(height: int, width: int, settings: VisionSettings) -> Size:
    """Multiples of `patch_size * merge_size`. Raises InvalidRequest for a shape that no model was trained on."""
    factor, frames = settings.patch_size * settings.merge_size, settings.frames
    shown = f"{width} x {height}"
    height, width = _enlarged(height, width, settings)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InvalidRequest(
            f"an image is {shown} pixels; its longer side may be at most {MAX_ASPECT_RATIO} times its shorter one"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    num_pixels = frames * new_height * new_width
    if num_pixels > settings.max_pixels:
        shrink = math.sqrt((frames * height * width) / settings.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif num_pixels < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def _enlarged(height: int, width: int, settings: VisionSettings) -> Size:
    """Where a side is shorter than a token."""
    factor = settings.patch_size * settings.merge_size
    if not settings.grows_small or (height >= factor and width >= factor):
        return height, width
    scale = max(factor / height, factor / width)
    return int(height * scale), int(width * scale)


def token_grid(height: int, width: int, settings: VisionSettings) -> Grid:
    """Rows and columns of tokens of an upright image of `height` x `width` pixels; as `resized` raises."""
    factor = settings.patch_size * settings.merge_size
    new_height, new_width = resized(height, width, settings)
    return new_height // factor, new_width // factor


def can_become(height: int, width: int, grid: Grid, settings: VisionSettings) -> bool:
    """Whether `token_grid` gives `grid` for limits of pixels within those of `settings`. Of what lies next to a limit
    it lets more pass: by a row and a column."""
    factor = settings.patch_size * settings.merge_size
    sides = [side / factor for side in _enlarged(height, width, settings)]
    token = settings.frames * factor**2
    rows, columns = grid
    if (rows - 1) * (columns - 1) * token > settings.max_pixels or (rows + 1) * (columns + 1) * token < (
        settings.min_pixels
    ):
        return False
    pairs = list(zip(sides, grid, strict=True))
    if all(round(side) == count for side, count in pairs):
        return True
    shrink = [(side / (count + 1), side / count if count > 1 else math.inf) for side, count in pairs]
    grow = [((count - 1) / side, count / side) for side, count in pairs]
    return any(max(low for low, _ in ranges) <= min(high for _, high in ranges) * _NEARLY for ranges in (shrink, grow))
