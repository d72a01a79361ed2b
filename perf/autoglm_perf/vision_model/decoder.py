"""Second half of the training: the decoder learns to find the asked button among the image tokens, and to say where it
is.

One screen is asked about several times in one conversation: what varies is then the choice, not the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from autoglm_export.screens.questions import STEP
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from .architecture import HIDDEN_SIZE, IDS, IMAGE
from .texts import Conversation, rendered
from .tower import IGNORED, Grid

EARLY = 2  # layers after which the word for a button has found it


class Batch:
    """Conversations of one grid, padded behind: `ids`, `labels` [batch, length]; `positions` [3, batch, length];
    `middles` [batch, length, 2], at the word for a button the column and row of coordinates of its middle."""

    def __init__(self, tokenizer: Tokenizer, talks: Sequence[Conversation], grid: Grid) -> None:
        rows = [_Encoded(tokenizer, talk, grid) for talk in talks]
        length = max(len(row.ids) for row in rows) - 1
        self.ids = torch.full((len(rows), length), IDS["<|endoftext|>"])
        self.labels = torch.full((len(rows), length), IGNORED)
        self.middles = torch.full((len(rows), length, 2), IGNORED)
        self.positions = torch.zeros(3, len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            known = len(row.ids) - 1
            self.ids[index, :known] = torch.tensor(row.ids[:-1])
            self.labels[index, :known] = torch.tensor(row.labels)
            self.positions[:, index] = torch.from_numpy(_positions(row.ids.index(IMAGE), grid, length))
            for place, middle in row.middles.items():
                self.middles[index, place] = torch.tensor(middle)

    def losses(self, model: Any, heads: nn.ModuleList, features: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Of the answers, of the heads, and which part of both is right. `features`: [batch, tokens, width]."""
        embedded = model.model.language_model.embed_tokens(self.ids)
        embedded = embedded.masked_scatter((self.ids == IMAGE)[..., None], features.to(embedded.dtype))
        output = model.model.language_model(
            inputs_embeds=embedded, position_ids=self.positions, use_cache=False, output_hidden_states=True
        )
        learned, asked = self.labels != IGNORED, self.middles[..., 0] != IGNORED
        logits, wanted = model.lm_head(output.last_hidden_state[learned]).float(), self.labels[learned]
        early, middles = output.hidden_states[EARLY][asked], self.middles[asked]
        early = functional.rms_norm(early.float(), early.shape[-1:])
        guesses = [head(early).float() for head in heads]
        found = sum(functional.cross_entropy(guess, middles[:, axis]) for axis, guess in enumerate(guesses))
        hits = [guess.argmax(-1) == middles[:, axis] for axis, guess in enumerate(guesses)]
        right = {"answers": _mean(logits.argmax(-1) == wanted), "found": _mean(torch.stack(hits))}
        return functional.cross_entropy(logits, wanted), torch.as_tensor(found), right


def early_heads() -> nn.ModuleList:
    """What the word for a button is asked about the button's middle: column, row."""
    return nn.ModuleList([nn.Linear(HIDDEN_SIZE, 1000 // STEP) for _ in range(2)])


def _mean(hits: Tensor) -> float:
    return float(hits.float().mean())


class _Encoded:
    """`labels`: for each id but the last the next one, where that is learned. `middles`: by the place of the word."""

    def __init__(self, tokenizer: Tokenizer, talk: Conversation, grid: Grid) -> None:
        self.ids: list[int] = []
        self.middles: dict[int, tuple[int, int]] = {}
        learned: list[bool] = []
        for part in rendered(talk):
            encoding = tokenizer.encode(part.text)
            for place, token in enumerate(encoding.ids):
                self.ids += [token] * (grid[0] * grid[1] if token == IMAGE else 1)
                if part.asked and place == encoding.char_to_token(part.text.rindex(part.asked.word)):
                    x, y = part.asked.button.box.centre
                    self.middles[len(self.ids) - 1] = int(x) // STEP, int(y) // STEP
            learned += [part.learned] * (len(self.ids) - len(learned))
        self.labels = [token if wanted else IGNORED for token, wanted in zip(self.ids[1:], learned[1:], strict=True)]


def _positions(start: int, grid: Grid, length: int) -> npt.NDArray[np.int64]:
    """[3, length] time, row, column: equal for text, along the grid for the image, then behind its longer side."""
    rows, columns = grid
    count = rows * columns
    image = np.stack([np.zeros(count), np.arange(count) // columns, np.arange(count) % columns]) + start
    rest = np.arange(length - start - count) + start + max(grid)
    text = [np.tile(part, (3, 1)) for part in (np.arange(start), rest)]
    positions: npt.NDArray[np.int64] = np.concatenate([text[0], image, text[1]], axis=1).astype(np.int64)
    return positions
