"""Canonical weights of a model, read lazily from a checkpoint's own tensors.

`weight_shapes` says what a spec needs; `source_names` where a Hugging Face checkpoint has it; `CheckpointWeights` is
the mapping that the lowerings read: name -> float32 array, loaded at each access and never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from autoglm_export.errors import TensorError
from autoglm_export.model.spec import ModelSpec

from .families import Family

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]
_MIN_TENSORS = 6  # of a layer: two norms, query, key and value as one, output, gate and up as one, down


class TensorStore(Protocol):
    """The tensors of a checkpoint under their own names."""

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> Shape: ...

    def read(self, name: str, rows: slice) -> Array:
        """Rows `rows` of the tensor, as float32. Raises TensorError for values that are not finite."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where one canonical weight lies: part `part` of `parts` equal row blocks of tensor `name`, then `undo`. `span`:
    where blocks are not equal, its first row and how many the tensor has."""

    name: str
    part: int = 0
    parts: int = 1
    undo: Callable[[Array], Array] | None = None
    span: tuple[int, int] | None = None

    def rows(self, count: int) -> slice:
        """Of a weight with `count` rows."""
        begin = self.part * count if self.span is None else self.span[0]
        return slice(begin, begin + count)

    def all_rows(self, count: int) -> int:
        return self.parts * count if self.span is None else self.span[1]


def weight_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Canonical name -> shape of every weight that `spec` needs, in the order of the forward pass."""
    shapes: dict[str, Shape] = {"embed": (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _layer_shapes(spec).items()}
    shapes["final_norm"] = (spec.hidden_size,)
    if not spec.tied_embeddings:
        shapes["lm_head"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def _layer_shapes(spec: ModelSpec) -> dict[str, Shape]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    query, key_value = spec.num_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    shapes: dict[str, Shape] = {"attention_norm": (hidden,)}
    shapes |= _linear("query", query, hidden, spec.qkv_bias)
    shapes |= _linear("key", key_value, hidden, spec.qkv_bias)
    shapes |= _linear("value", key_value, hidden, spec.qkv_bias)
    if spec.qk_norm:
        shapes |= {"query_norm": (spec.head_size,), "key_norm": (spec.head_size,)}
    shapes |= _linear("output", hidden, query, spec.output_bias)
    if spec.sandwich_norm:
        shapes["post_attention_norm"] = (hidden,)
    shapes["mlp_norm"] = (hidden,)
    shapes |= _linear("gate", inner, hidden, spec.mlp_bias)
    shapes |= _linear("up", inner, hidden, spec.mlp_bias)
    shapes |= _linear("down", hidden, inner, spec.mlp_bias)
    if spec.sandwich_norm:
        shapes["post_mlp_norm"] = (hidden,)
    return shapes


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def source_names(spec: ModelSpec, family: Family) -> dict[str, Source]:
    """Canonical name -> where a Hugging Face checkpoint of `family` keeps it."""
    return {name: _source_of(name, family) for name in weight_shapes(spec)}


def _source_of(name: str, family: Family) -> Source:
    if name == "lm_head":
        return Source("lm_head.weight")
    words = name.split(".")
    layer = words[1] if words[0] == "layers" else ""
    generic = ".".join(["layers", "{i}", *words[2:]]) if layer else name
    if generic in family.names:
        return Source(family.prefix + family.names[generic].format(i=layer))
    linear, _, kind = generic.rpartition(".")
    base, _, block = family.names[linear].partition("#")
    part, _, parts = block.partition("/")
    return Source(f"{family.prefix}{base.format(i=layer)}.{kind}", int(part or 0), int(parts or 1))


def finite(name: str, values: Array) -> Array:
    """`values` of the tensor `name`, as they are. Raises TensorError where one is no finite number: it would silently
    become one on the way to a quantised model."""
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        wrong = values[~np.isfinite(values)]
        raise TensorError(
            f"the tensor {name} holds {wrong.size} values that are no finite numbers, the first {wrong[0]}"
        )
    return values


def prepared(name: str, values: Array) -> Array:
    """`values` of what was computed of the weights `name`. Raises TensorError where that left the range of float32:
    what is quantised of it would look like any other number."""
    if not np.isfinite(values).all():
        raise TensorError(
            f"{name} leaves the range of float32 when it is made ready for the runtime: its weights are too large"
        )
    return values


def check_counts(spec: ModelSpec, store: TensorStore) -> None:
    """Compares the number of layers, which decides how much is done before any tensor is looked at, with what is
    there."""
    if spec.num_layers * _MIN_TENSORS > len(store.names()):
        raise TensorError(
            f"the config has {spec.num_layers} layers, of at least {_MIN_TENSORS} tensors each; the checkpoint has "
            f"{len(store.names())} tensors in all"
        )


class CheckpointWeights(Mapping[str, Array]):
    """Canonical name -> float32 array. Built only when every tensor is there in its right shape, and none is left
    over."""

    def __init__(
        self,
        store: TensorStore,
        shapes: Mapping[str, Shape],
        sources: Mapping[str, Source],
        is_ignored: Callable[[str], bool],
    ) -> None:
        self._store, self._shapes, self._sources = store, dict(shapes), dict(sources)
        self._check_names(is_ignored)
        self._check_shapes()

    def __getitem__(self, name: str) -> Array:
        source = self._sources[name]
        block = self._store.read(source.name, source.rows(self._shapes[name][0]))
        return block if source.undo is None else source.undo(block)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def _check_names(self, is_ignored: Callable[[str], bool]) -> None:
        present = set(self._store.names())
        wanted = {source.name for source in self._sources.values()}
        if missing := sorted(wanted - present):
            raise TensorError(f"the checkpoint lacks {_some(missing)}")
        if extra := sorted(name for name in present - wanted if not is_ignored(name)):
            raise TensorError(f"the checkpoint has tensors that its config does not explain: {_some(extra)}")

    def _check_shapes(self) -> None:
        for name, shape in self._shapes.items():
            source = self._sources[name]
            expected = (source.all_rows(shape[0]), *shape[1:])
            if (actual := self._store.shape(source.name)) != expected:
                raise TensorError(
                    f"the tensor {source.name} has shape {list(actual)}; its config asks for {list(expected)}"
                )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


class CountedWeights(Mapping[str, Array]):
    """Weights of these shapes, all finite, that report how much of them is done, as the progress of `stage`: of all
    numbers, those that were read before the array that is asked for now."""

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        weights: Mapping[str, Array],
        progress: Callable[[str, float], None],
        stage: str,
    ) -> None:
        self._weights, self._progress, self._stage = weights, progress, stage
        self._total = sum(map(prod, shapes.values()))
        self._num_read = 0

    def __getitem__(self, name: str) -> Array:
        self._progress(self._stage, min(1.0, self._num_read / self._total))
        weight = prepared(name, self._weights[name])
        self._num_read += weight.size
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __len__(self) -> int:
        return len(self._weights)


class LayerCache(Mapping[str, Array]):
    """Weights of which those of one layer are kept, so that whoever reads a layer twice reads and computes it once."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights
        self._layer, self._kept = "", dict[str, Array]()

    def __getitem__(self, name: str) -> Array:
        if not name.startswith("layers."):
            return self._weights[name]
        layer = name.split(".")[1]
        if layer != self._layer:
            self._layer, self._kept = layer, {}
        if name not in self._kept:
            self._kept[name] = self._weights[name]
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __len__(self) -> int:
        return len(self._weights)
