"""What the graph of a decoder that takes images has beside that of another: features in place of embeddings, and a
rotary embedding by three positions a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec, RopeSpec

from .graph import CONTRIB, OnnxGraph


class ImageInputs:
    """The inputs `positions` and `image_features` of a graph."""

    def __init__(self, graph: OnnxGraph, spec: ModelSpec) -> None:
        self._graph, self._spec = graph, spec
        self._positions = graph.input("positions", np.int32, [3, "rows"])
        self._features = graph.input("image_features", np.float32, ["num_features", spec.feature_size])
        self._zero = graph.tensor("token_zero", np.array(0, np.int32))
        self._places = self._places_of_images()

    def embedded_ids(self) -> str:
        """Token ids for the embedding table; those of images are any."""
        return self._graph.op("Max", "token_ids", self._zero)

    def with_features(self, rows: str) -> str:
        """float32 rows of the step's tokens, with those of images replaced."""
        return self._graph.op("ScatterND", rows, self._places, self._part(0))

    def with_more_features(self, rows: str, part: int) -> str:
        """float32 rows of the step's tokens, with this part of the features added to those of images."""
        return self._graph.op("ScatterND", rows, self._places, self._part(part), reduction="add")

    def positions(self) -> list[str]:
        """[rows] each: time, row and column."""
        axes = [self._graph.tensor(f"axis_{axis}", np.array(axis, np.int64)) for axis in range(3)]
        return [self._graph.op("Gather", self._positions, axis) for axis in axes]

    def _places_of_images(self) -> str:
        """int64 [num_features, 1]: rows of the step."""
        are_of_images = self._graph.op("Less", "token_ids", self._zero)
        return self._graph.op("Transpose", self._graph.op("NonZero", are_of_images))

    def _part(self, part: int) -> str:
        """[num_features, hidden_size]"""
        if not self._spec.num_deepstack:
            return self._features
        ends = part * self._spec.hidden_size, (part + 1) * self._spec.hidden_size
        first, last = (self._graph.tensor(f"feature_{end}", np.array([end])) for end in ends)
        return self._graph.op("Slice", self._features, first, last, self._graph.tensor("feature_axis", np.array([1])))


class SectionedRope:
    """Rotates queries and keys before GroupQueryAttention, which knows one position a token."""

    def __init__(self, graph: OnnxGraph, rope: RopeSpec, tables: Mapping[str, Array], positions: Sequence[str]) -> None:
        """`tables`: cosines and sines by position, `[cache_length, rope.dims / 2]`."""
        self._graph, self._rope = graph, rope
        self._tables = [self._of_tokens(name, table, positions) for name, table in tables.items()]
        self._row_numbers = self._numbered_rows()

    def rotated(self, x: str, num_heads: int) -> str:
        """[batch, tokens a sequence, num_heads * head_size], each token by its own row of the tables."""
        return self._graph.op(
            "RotaryEmbedding",
            *(x, self._row_numbers, *self._tables),
            domain=CONTRIB,
            interleaved=int(self._rope.interleaved),
            num_heads=num_heads,
            rotary_embedding_dim=self._rope.dims,
        )

    def _of_tokens(self, name: str, table: Array, positions: Sequence[str]) -> str:
        """[rows, rope.dims / 2]: of each section the columns at the positions on its axis, each in its place."""
        axes, order = np.array(self._rope.axes), np.array(self._rope.pairs_by_axis)
        parts = [
            self._graph.op("Gather", self._graph.tensor(f"{name}_{axis}", table[:, axes == axis]), positions[axis])
            for axis in range(3)
            if axis in axes
        ]
        by_axis = self._graph.op("Concat", *parts, axis=1)
        if not self._rope.mixed_sections:
            return by_axis
        return self._graph.op("Gather", by_axis, self._graph.tensor("pair_places", np.argsort(order)), axis=1)

    def _numbered_rows(self) -> str:
        """int64 [batch, tokens a sequence]: 0, 1, ..."""
        graph = self._graph
        zero, one = (graph.tensor(f"row_{number}", np.array(number, np.int64)) for number in (0, 1))
        numbers = graph.op("Range", zero, graph.op("Squeeze", graph.op("Shape", "token_ids")), one)
        shape = graph.op("Concat", graph.op("Shape", "last_position"), graph.tensor("rest", np.array([-1])), axis=0)
        return graph.op("Reshape", numbers, shape)
