"""What the network of a decoder that takes images has beside that of another: features in place of embeddings, and a
rotary embedding by three positions a token.

    rope_positions   int32 [B, 3, S]                of each token, in time, row and column; below cache_length
    image_features   float32 [rows, feature_size]   a token id of -1 - i stands for row i

A row of a decoder with deepstack has further parts behind the one in place of the embedding, each of which is added
behind a layer. Whole rows are gathered for a call's tokens and then cut, so that a decode call, which has few tokens,
never copies a part of the whole block.

Caches and mask know nothing of it: there a token's place in its slot is its position. Rows have one number for all
calls, so that decode's graphs hold: a call copies those in that it has tokens for, and the rest are any finite numbers.
"""

from __future__ import annotations

import numpy as np

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec

from .network import Network, Tensor


class ImageInputs:
    def __init__(self, network: Network, spec: ModelSpec, token_ids: Tensor, num_rows: int) -> None:
        """`num_rows`: of features."""
        self._network, self._spec, self._token_ids = network, spec, token_ids
        self._positions = network.input("rope_positions", np.int32, [-1, 3, -1])
        features = network.input("image_features", np.float32, [num_rows, spec.feature_size])
        zero = self._number(0)
        rows = network.binary("MAX", network.binary("SUB", self._number(-1), token_ids), zero)
        self._rows = network.gather("feature_rows", features, rows, axis=0)  # [B, S, feature_size]; of text any
        self._is_of_image = network.reshape(network.binary("LESS", token_ids, zero), 0, 0, 1)

    def embedded_ids(self) -> Tensor:
        """Token ids for the embedding table; those of images are any."""
        return self._network.binary("MAX", self._token_ids, self._number(0))

    def with_features(self, embedded: Tensor) -> Tensor:
        """float32 `[B, S, hidden_size]` with the rows of image tokens replaced."""
        return self._network.select(self._is_of_image, self._part(0), embedded)

    def with_more_features(self, x: Tensor, part: int) -> Tensor:
        """float32 `[B, S, hidden_size]` with this part of the features added to the rows of image tokens."""
        network = self._network
        nothing = network.constant("no_features", np.zeros((1, 1, 1), np.float32))
        return network.binary("SUM", x, network.select(self._is_of_image, self._part(part), nothing))

    def turns(self, name: str, table: Array) -> Tensor:
        """float32 `[B, S, dims / 2]`: of each section of `table` `[positions, dims / 2]` the columns at the position on
        its axis, each in its place."""
        rope, network = self._spec.rope, self._network
        axes = np.array(rope.axes)
        parts = [self._at(f"{name}_{axis}", axis, table[:, axes == axis]) for axis in range(3) if axis in axes]
        by_axis = network.concatenation(parts, axis=2)
        if not rope.mixed_sections:
            return by_axis
        places = network.constant("pair_places", np.argsort(rope.pairs_by_axis).astype(np.int32))
        return network.gather(f"{name}_pairs", by_axis, places, axis=2)

    def _part(self, part: int) -> Tensor:
        """[B, S, hidden_size]"""
        network, width = self._network, self._spec.hidden_size
        if not self._spec.num_deepstack:
            return self._rows
        sizes = [network.shape(self._token_ids), network.constant("part_width", np.array([width], np.int64))]
        return network.slice(self._rows, (0, 0, part * width), network.concatenation(sizes))

    def _at(self, name: str, axis: int, section: Array) -> Tensor:
        network = self._network
        index = network.constant(f"rope_axis_{axis}", np.array([axis], np.int32))
        positions = network.reshape(network.gather(f"{name}_positions", self._positions, index, axis=1), 0, -1)
        return network.gather(f"{name}_rows", network.constant(name, section), positions, axis=0)

    def _number(self, value: int) -> Tensor:
        return self._network.constant(f"token_{value}", np.full((1, 1), value, np.int32))
