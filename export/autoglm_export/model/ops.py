"""The operators a decoder is made of: the seam between its one definition (`decoder.py`) and the runtimes that compute
it.

A back-end implements `Ops` over a tensor handle of its own (`T`): the name of a graph value, a network tensor, an index
into a program. Handles are opaque to the decoder. Activations are rows: `[num_rows, width]`, a row for each token of
the step. Weights are named as in `spec.py`; a back-end holds them, lays them out and quantises them as suits it.

The step's tokens, positions, cache slots and the rows whose logits are wanted are the back-end's inputs, the same for
every layer; so they are no arguments here.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Ops(Protocol[T]):
    def embed(self, weight: str) -> T:
        """The step's token ids -> rows of the table `weight` `[vocab_size, hidden_size]`; those of images:
        features."""
        ...

    def rms_norm(self, x: T, weight: str) -> T:
        """x / sqrt(mean(x^2) + eps) * weight, in float32, row by row."""
        ...

    def add_rms_norm(self, x: T, delta: T, weight: str) -> tuple[T, T]:
        """(x + delta, rms_norm(x + delta)): the residual stream and the next block's input, which most runtimes
        fuse."""
        ...

    def linear(self, x: T, *layers: str) -> T:
        """x @ weight^T (+ bias) of every layer in `layers`, side by side: `[num_rows, sum of their outputs]`.

        Layer `name` has the weight `name.weight` and, if it exists, the bias `name.bias`.
        """
        ...

    def attention(self, qkv: T, layer: int, query_norm: str | None, key_norm: str | None) -> T:
        """Causal grouped-query attention over the tokens' slots, whose caches it extends with their keys and values.

        `qkv` is `[num_rows, (num_heads + 2 * num_kv_heads) * head_size]`. Queries and keys are RMS-normed head by head
        where norms are named, then rotated by the spec's rope. Scale 1 / sqrt(head_size); `[num_rows, num_heads *
        head_size]`.
        """
        ...

    def swiglu(self, gate: T, up: T) -> T:
        """silu(gate) * up."""
        ...

    def add_features(self, x: T, part: int) -> T:
        """x, and on the rows of images' tokens part `part` of their features besides; part 0 is what `embed` gives.

        Of decoders with `num_deepstack` alone, and never behind `select_rows`.
        """
        ...

    def select_rows(self, x: T) -> T:
        """Only the rows whose logits are wanted."""
        ...

    def logits(self, x: T, weight: str) -> None:
        """x @ weight^T is the step's result, `[num_selected_rows, vocab_size]` float32."""
        ...
