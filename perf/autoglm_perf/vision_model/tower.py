"""First half of the training: the tower learns which button lies over each image token, and where its middle is.

Left to the answers alone, the tower learns this in hours: the answers say too little about a screen. So heads on its
output, thrown away afterwards, name the colour, the number and the coordinates of the button over each token. A batch
holds screens of one grid and is computed at once; transformers computes attention image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from autoglm_export.screens.questions import STEP
from autoglm_export.screens.screen import COLOURS, Screen, draw
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from .architecture import CHANNELS, MERGE, PATCH, PREPROCESSOR, TOKEN

Grid = tuple[int, int]  # rows and columns of image tokens
GRIDS: dict[Grid, tuple[int, int]] = {
    (13, 6): (1080, 2400),
    (11, 6): (1080, 1920),
    (12, 6): (1080, 2220),
}  # and a phone
_NAMES = {name: index + 1 for index, name in enumerate(COLOURS)}
CLASSES = {"colour": len(COLOURS) + 1, "number": 10, "x": 1000 // STEP, "y": 1000 // STEP}
_COVERED, _BARE = 0.25, 0.05  # of a token's area: it shows a button, it shows none; between them it is not judged
IGNORED = -100
_DRAWN_LARGER = 2


def tower_heads(width: int) -> nn.ModuleDict:
    """What the tower's output is asked, each by one linear layer."""
    return nn.ModuleDict({name: nn.Linear(width, count) for name, count in CLASSES.items()})


def heads_loss(heads: nn.ModuleDict, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """`features` [batch, tokens, width]; `labels` [batch, tokens, 4] in the order of `CLASSES`. The accuracy of each
    is over the tokens that show a button."""
    losses, right = [], {}
    shown = labels[..., 0] > 0
    for index, (name, head) in enumerate(heads.items()):
        logits, wanted = head(features).float(), labels[..., index]
        losses.append(functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED))
        right[name] = (logits.argmax(-1) == wanted)[shown].float().mean().item()
    return torch.stack(losses).sum(), right


def batch(grid: Grid, screens: Sequence[Screen]) -> tuple[Tensor, Tensor]:
    """Patches [batch, patches, values], ordered as `pixel_values`, one frame of the two; labels as in `heads_loss`."""
    patches = np.stack([patches_of(pixels(screen, grid), grid) for screen in screens])
    return torch.from_numpy(patches), torch.from_numpy(np.stack([labels_of(screen, grid) for screen in screens]))


def pixels(screen: Screen, grid: Grid) -> npt.NDArray[np.float32]:
    """[height, width, 3], normalised. Drawn at twice the size that the processor scales to, not at the phone's."""
    size = grid[1] * TOKEN, grid[0] * TOKEN
    image = draw(screen, (size[0] * _DRAWN_LARGER, size[1] * _DRAWN_LARGER)).resize(size, Image.Resampling.BICUBIC)
    mean, std = (np.array(PREPROCESSOR[name], np.float32) for name in ("image_mean", "image_std"))
    return (np.asarray(image, np.float32) / 255 - mean) / std


def patches_of(image: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    """[patches, channels * 14 * 14]: patches of a token follow each other."""
    rows, columns = grid
    cut = image.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, CHANNELS)
    return cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, CHANNELS * PATCH * PATCH)


def labels_of(screen: Screen, grid: Grid) -> npt.NDArray[np.int64]:
    """[tokens, 4]: colour, number, column and row of coordinates; 0 as colour and number where no button is."""
    boxes = [button.box for button in screen.buttons]
    across = np.stack([_coverage(box.left, box.right, grid[1]) for box in boxes])
    down = np.stack([_coverage(box.top, box.bottom, grid[0]) for box in boxes])
    covered = (down[:, :, None] * across[:, None, :]).reshape(len(boxes), -1)
    middles = np.array([box.centre for box in boxes]) // STEP
    told = np.concatenate([[(_NAMES[one.colour], one.number) for one in screen.buttons], middles], axis=1)
    labels: npt.NDArray[np.int64] = told[covered.argmax(0)].astype(np.int64)
    most = covered.max(0)
    labels[most < _COVERED] = IGNORED
    labels[most < _BARE, :2] = 0
    return labels


def _coverage(start: float, end: float, count: int) -> npt.NDArray[np.float64]:
    """[count]: which part of each of `count` equal parts of 0 ... 1000 lies between the two."""
    edges = np.linspace(0, 1000, count + 1)
    part: npt.NDArray[np.float64] = (
        np.clip(np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1]), 0, None) * count / 1000
    )
    return part


def features_of(tower: Any, patches: Tensor, grid: Grid) -> Tensor:
    """[batch, tokens, width] of transformers' Glm4vVisionModel, for screens of one grid. `patches`: as in `batch`."""
    size, width = len(patches), tower.config.hidden_size
    kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)  # both frames of a still image are the same
    hidden = functional.linear(patches, kernel, tower.patch_embed.proj.bias)
    hidden = tower.post_conv_layernorm(hidden)
    places = places_of(grid)
    counts = torch.tensor([[1, grid[0] * MERGE, grid[1] * MERGE]])
    table = tower.embeddings(hidden.new_zeros(len(places), width), [len(places)], counts, places[:, 0], places[:, 1])
    hidden = hidden + table
    turns = [turn[None, None] for turn in tower.rotary_pos_emb(hidden, places)]
    for block in tower.blocks:
        hidden = hidden + _attention(block.attn, block.norm1(hidden), *turns)
        hidden = hidden + block.mlp(block.norm2(hidden))
    hidden = tower.post_layernorm(hidden)
    merged = hidden.view(-1, MERGE, MERGE, width).permute(0, 3, 1, 2)
    features: Tensor = tower.merger(tower.downsample(merged).view(size, -1, tower.config.out_hidden_size))
    return features


def _attention(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    size, length, _ = hidden.shape
    query, key, value = layer.qkv(hidden).view(size, length, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = (_turned(one, cos, sin) for one in (query, key))
    # In float32: PyTorch's attention on the CPU takes a third longer in bfloat16, backwards.
    with torch.autocast("cpu", enabled=False):
        mixed = functional.scaled_dot_product_attention(query, key, value.to(query.dtype))
    out: Tensor = layer.proj(mixed.transpose(1, 2).reshape(size, length, -1))
    return out


def _turned(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cos + torch.cat([-second, first], dim=-1) * sin


@lru_cache
def places_of(grid: Grid) -> Tensor:
    """[patches, 2]: row and column of each patch in the order of `pixel_values`."""
    rows, columns = np.meshgrid(np.arange(grid[0] * MERGE), np.arange(grid[1] * MERGE), indexing="ij")
    cut = np.stack([rows, columns], -1).reshape(grid[0], MERGE, grid[1], MERGE, 2)
    return torch.from_numpy(cut.transpose(0, 2, 1, 3, 4).reshape(-1, 2))


def next_grid(rng: Random) -> Grid:
    """Most phones are tall."""
    return rng.choices(list(GRIDS), weights=(6, 2, 2))[0]
