"""Whether an ONNX graph takes and gives what its manifest says: buffers are bound by the manifest's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autoglm_engine.errors import ArtifactError

from .memory import CacheLayout

Tensor = tuple[str, tuple[int, ...]]  # type as ONNX Runtime says it, shape; -1 is of any size
_INDICES = ("token_ids", "last_position", "total_length", "logit_rows")
_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)"}


def check_interface(session: Any, layout: CacheLayout, vocab_size: int, feature_size: int = 0) -> None:
    """Raises ArtifactError, naming a tensor that is not as the manifest says. `feature_size`: 0 without images."""
    expected = dict(_expected(layout, vocab_size)) | (_of_images(feature_size) if feature_size else {})
    found = {tensor.name: _told(tensor) for tensor in (*session.get_inputs(), *session.get_outputs())}
    if differing := sorted(expected.keys() ^ found.keys()):
        raise ArtifactError(f"the artifact's graph and manifest disagree about {differing[0]}; export it again")
    for name, (kind, shape) in expected.items():
        found_kind, found_shape = found[name]
        same_size = len(shape) == len(found_shape) and all(
            a == b for a, b in zip(shape, found_shape, strict=True) if a >= 0
        )
        if kind != found_kind or not same_size:
            raise ArtifactError(
                f"the artifact's graph has {name} as {found_kind} {list(found_shape)}, its manifest as {kind} "
                f"{list(shape)}; export it again"
            )


def _expected(layout: CacheLayout, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    for name in _INDICES:
        yield name, ("tensor(int32)", () if name == "total_length" else (-1,))
    yield "logits", (_TYPES["float32"], (-1, vocab_size))
    _, *rest = layout.rows(1)
    for layer in range(layout.num_layers):
        for part in ("key", "value"):
            for when in ("past", "present"):
                yield f"{when}_{part}_{layer}", (_TYPES[layout.dtype.name], (-1, *rest))


def _of_images(feature_size: int) -> dict[str, Tensor]:
    return {"positions": ("tensor(int32)", (3, -1)), "image_features": (_TYPES["float32"], (-1, feature_size))}


def _told(tensor: Any) -> Tensor:
    return tensor.type, tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
