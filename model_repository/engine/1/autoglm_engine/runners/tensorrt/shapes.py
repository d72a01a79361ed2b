"""What the tensors of an artifact's network look like, from its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest

Shape = tuple[int, ...]
_CACHE_TYPES = {"float16": 2, "bfloat16": 2}  # bytes of a value


@dataclass(frozen=True, slots=True)
class TensorShapes:
    num_slots: int
    num_layers: int
    num_kv_heads: int
    cache_length: int  # positions of a slot's buffers; those beyond max_length are never read, idle rows write to them
    attention_lengths: tuple[int, ...]  # positions that a call's attention may read, rising; the last is cache_length
    prefill_lengths: tuple[
        int, ...
    ]  # tokens that a prefill call's rows are padded to, rising; the last is prefill_chunk
    batched_rows: int  # most of a prefill call
    batched_length: int  # most tokens of a row where a prefill call has several
    head_size: int
    cache_dtype: str
    prefill_chunk: int
    vocab_size: int
    num_candidates: int
    feature_size: int = 0  # numbers of a row of an image's features; 0: it takes no images

    @classmethod
    def of(cls, manifest: Manifest) -> TensorShapes:
        """Raises ArtifactError where the manifest contradicts itself."""
        details, cache = manifest.runtime_details, manifest.cache
        try:
            batched = details["profiles"]["batched_prefill"]
            shapes = cls(
                num_slots=manifest.num_slots,
                num_layers=cache.num_layers,
                num_kv_heads=cache.num_kv_heads,
                cache_length=int(details["cache_length"]),
                attention_lengths=tuple(map(int, details["attention_lengths"])),
                prefill_lengths=tuple(map(int, details["prefill_lengths"])),
                batched_rows=int(batched["batch"][1]),
                batched_length=int(batched["sequence"][1]),
                head_size=cache.head_size,
                cache_dtype=details["cache_dtype"],
                prefill_chunk=manifest.prefill_chunk,
                vocab_size=manifest.vocab_size,
                num_candidates=int(details["num_candidates"]),
                feature_size=int(details.get("feature_size", 0)),
            )
            _ = shapes.cache_itemsize
        except KeyError as error:
            raise ArtifactError(f"the artifact's manifest lacks or does not know {error}; export it again") from None
        except (IndexError, TypeError, ValueError):
            raise ArtifactError(
                f"the artifact's manifest has runtime_details.profiles {str(details['profiles'])[:100]}, which gives "
                "no batched_prefill with batch and sequence from ... to; export it again"
            ) from None
        shapes.check(manifest.max_length)
        return shapes

    def check(self, max_length: int) -> None:
        """Whether there are spare positions for the longest idle row, and calls for all that a slot and a span may
        hold."""
        needed = max_length + self.batched_length
        if self.cache_length < needed:
            raise ArtifactError(
                f"the artifact's cache has {self.cache_length} positions; {max_length} tokens need {needed}: "
                "export it again"
            )
        if self.batched_rows > self.num_slots:
            raise ArtifactError(
                f"the artifact's batches have {self.batched_rows} rows, there are {self.num_slots} slots: export it "
                "again"
            )
        if self.attention_lengths[-1:] != (self.cache_length,):
            raise ArtifactError(
                f"the artifact's attention reads {self.attention_lengths} positions, its cache has "
                f"{self.cache_length}: export it again"
            )
        if self.prefill_lengths[-1:] != (self.prefill_chunk,) or self.batched_length not in self.prefill_lengths:
            raise ArtifactError(
                f"the artifact pads prompts to {self.prefill_lengths} tokens, its chunks have {self.prefill_chunk} and "
                f"those of a batch {self.batched_length}: export it again"
            )

    def padded(self, num_tokens: int) -> int:
        """The shortest of `prefill_lengths` that holds so many."""
        return next(length for length in self.prefill_lengths if length >= num_tokens)

    def keys(self, num_positions: int) -> int:
        """The shortest of `attention_lengths` that holds so many."""
        return next(length for length in self.attention_lengths if length >= num_positions)

    @property
    def feature_rows(self) -> int:
        """As many as any call has tokens."""
        return max(self.num_slots, self.prefill_chunk, self.batched_rows * self.batched_length)

    @property
    def cache_itemsize(self) -> int:
        """Bytes of a value."""
        return _CACHE_TYPES[self.cache_dtype]

    @property
    def cache_names(self) -> list[str]:
        """As in key_0, value_0, key_1, ...: of the tensors past_* and present_*."""
        return [f"{kind}_{layer}" for layer in range(self.num_layers) for kind in ("key", "value")]

    def cache(self, rows: int) -> Shape:
        return (rows, self.num_kv_heads, self.cache_length, self.head_size)

    @property
    def bytes_per_head(self) -> int:
        """Of one head's positions in one slot of one layer's keys, or values."""
        return self.cache_length * self.bytes_per_position

    @property
    def bytes_per_position(self) -> int:
        return self.head_size * self.cache_itemsize

    @property
    def bytes_per_slot(self) -> int:
        """Of one layer's keys, or values."""
        return self.num_kv_heads * self.bytes_per_head

    def inputs(self, rows: int, tokens: int, keys: int) -> dict[str, Shape]:
        """Name -> shape of every input of a call whose attention reads `keys` positions of each row."""
        return {
            "token_ids": (rows, tokens),
            "position_ids": (rows, tokens),
            "write_indices": (rows,),
            "key_positions": (keys,),
            "logit_indices": (rows, 1),
            "inverse_temperature": (rows, 1),
            "logit_factor": (rows, self.vocab_size),
            "logit_offset": (rows, self.vocab_size),
            **(self._image_inputs(rows, tokens) if self.feature_size else {}),
        } | {f"past_{name}": self.cache(rows) for name in self.cache_names}

    def _image_inputs(self, rows: int, tokens: int) -> dict[str, Shape]:
        return {"rope_positions": (rows, 3, tokens), "image_features": (self.feature_rows, self.feature_size)}

    def outputs(self, rows: int) -> dict[str, Shape]:
        return {
            "logits": (rows, self.vocab_size),
            "candidate_logits": (rows, self.num_candidates),
            "candidate_ids": (rows, self.num_candidates),
            "log_sum_exp": (rows, 1),
        } | {f"present_{name}": self.cache(rows) for name in self.cache_names}


def check_tensors(engine: Any, shapes: TensorShapes) -> None:
    """Raises ArtifactError where the engine's inputs and outputs are not those that the manifest tells of. The batch,
    the tokens of a row and the positions read are -1 in an engine's shapes, or inferred from them."""
    expected = shapes.inputs(-1, -1, -1) | shapes.outputs(-1)
    found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if differing := sorted(found.symmetric_difference(expected)):
        raise ArtifactError(
            f"the artifact's engine and manifest disagree about {', '.join(differing)}; export it again"
        )
    for name, shape in expected.items():
        actual = tuple(engine.get_tensor_shape(name))
        known = [(size, told) for size, told in zip(actual, shape, strict=False) if size >= 0 and told >= 0]
        if len(actual) != len(shape) or any(size != told for size, told in known):
            raise ArtifactError(
                f"the tensor {name} has the shape {actual} in the artifact's engine, {shape} in its manifest; "
                "export it again"
            )
