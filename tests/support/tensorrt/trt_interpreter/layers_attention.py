"""The layers of a transformer's attention: rotary embedding, cache update and attention itself."""

import numpy as np

from tests.support.tensorrt.trt_interpreter.dtypes import Array, float32
from tests.support.tensorrt.trt_interpreter.layers import Inputs, Outputs, given, required, unsupported
from tests.support.tensorrt.trt_interpreter.network import Layer


def rotary_embedding(layer: Layer, inputs: Inputs) -> Outputs:
    """Rotates pairs of the first `rotary_embedding_dim` numbers (0: all) of x [B, N, S, H], the rest passes through.

    A pair is two neighbours where `interleaved`, else a number of the first half and its counterpart in the second.
    cos and sin are [B, S, dim / 2]; with position ids [B, S] as input 3 they are tables [positions, dim / 2].
    """
    x, positions = required(layer, inputs, 0), given(inputs, 3)
    dim = layer.attributes["rotary_embedding_dim"] or x.shape[-1]
    cos, sin = (_angles(layer, required(layer, inputs, i), positions) for i in (1, 2))
    if cos.shape[-1] * 2 != dim or cos.shape != sin.shape:
        raise ValueError(f"{layer} rotates {dim} numbers by tables of {cos.shape[-1]} and {sin.shape[-1]} angles")
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if layer.attributes["interleaved"] else _halves(dim)
    rotated = x.copy()
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., second] * cos + x[..., first] * sin
    return (rotated,)


def _halves(dim: int) -> tuple[slice, slice]:
    return slice(0, dim // 2), slice(dim // 2, dim)


def _angles(layer: Layer, table: Array, positions: Array | None) -> Array:
    """Cosines or sines as [B, 1, S, dim / 2], the same for every head."""
    if positions is None:
        return np.expand_dims(table, 1)
    if positions.size and not (positions.min() >= 0 and positions.max() < len(table)):
        found = f"{positions.min()} ... {positions.max()}"
        raise ValueError(f"{layer} is given positions {found}, its tables have 0 ... {len(table) - 1}")
    return np.expand_dims(table[positions], 1)


def kv_cache_update(layer: Layer, inputs: Inputs) -> Outputs:
    """Writes update [B, N, S, H] into cache [B, N, L, H] in place, row b from write_indices[b] on.

    TensorRT drops in silence what would land outside of the cache. Here that raises.
    """
    if layer.attributes["cache_mode"] != "LINEAR" or layer.attributes["update_form"] != "PADDED_BHND":
        raise unsupported(layer, f"{layer.attributes['cache_mode']} {layer.attributes['update_form']}")
    cache, update, starts = (required(layer, inputs, i) for i in range(3))
    num_new, length = update.shape[2], cache.shape[2]
    if not len(cache) == len(update) == len(starts):
        raise ValueError(f"{layer} has {len(cache)} caches, {len(update)} updates and {len(starts)} write indices")
    for row, start in enumerate(starts.tolist()):
        if not 0 <= start <= length - num_new:
            raise ValueError(
                f"{layer} writes positions {start} ... {start + num_new - 1} of row {row}, outside of 0 ... "
                f"{length - 1}"
            )
        cache[row, :, start : start + num_new] = update[row]
    return (cache,)


def attention(layer: Layer, inputs: Inputs) -> Outputs:
    """softmax(query key^T, masked) value; there is no scale: TensorRT wants the query scaled beforehand.

    query [B, Nq, S, H], key and value [B, Nkv, L, H]: query head h reads head h // (Nq / Nkv). Row b sees only the
    first lengths[b] keys, where lengths (input 6) are given. Query i sees keys j <= i (UPPER_LEFT) or
    j <= i + keys - S (LOWER_RIGHT). NaN in a key or value that is read counts as never written, and raises.
    """
    _check_form(layer)
    query, key, value = (required(layer, inputs, i) for i in range(3))
    lengths, mask = given(inputs, 6), given(inputs, 3)
    if not len(query) == len(key) == len(value) or (lengths is not None and len(lengths) != len(query)):
        raise ValueError(f"{layer} has batches of {len(query)}, {len(key)}, {len(value)} and lengths {lengths}")
    result = np.empty((*query.shape[:3], value.shape[3]), np.float32)
    for row in range(len(query)):
        num_keys = key.shape[2] if lengths is None else int(lengths[row])
        if not 0 < num_keys <= key.shape[2]:
            raise ValueError(f"{layer} reads {num_keys} keys of row {row}, not 1 ... {key.shape[2]}")
        bias = _bias(layer, row, mask, query.shape[2], num_keys)
        result[row] = _attend(layer, row, query[row], key[row, :, :num_keys], value[row, :, :num_keys], bias)
    return (result,)


def _check_form(layer: Layer) -> None:
    attributes = layer.attributes
    if attributes["norm_op"] != "SOFTMAX" or attributes["num_ranks"] != 1:
        raise unsupported(layer, f"normalisation {attributes['norm_op']} on {attributes['num_ranks']} ranks")
    if (attributes["query_form"], attributes["key_value_form"]) != ("PADDED_BHND", "PADDED_BHND"):
        raise unsupported(layer, f"{attributes['query_form']} with {attributes['key_value_form']}")
    if len(layer.inputs) > 4 and layer.inputs[4] is not None:
        raise unsupported(layer, "a quantised normalisation")


def _bias(layer: Layer, row: int, mask: Array | None, num_queries: int, num_keys: int) -> Array:
    """What is added to the scores of a row, [heads or 1, S, keys]: -inf where a query may not look."""
    kind = layer.attributes["causal_kind"]
    offset = {"NONE": num_keys, "UPPER_LEFT": 0, "LOWER_RIGHT": num_keys - num_queries}[kind]
    causal = np.arange(num_keys)[None, :] <= np.arange(num_queries)[:, None] + offset
    bias = np.where(causal, np.float32(0), np.float32(-np.inf))[None]
    if mask is None:
        return bias
    asked = mask[row if len(mask) > 1 else 0][..., :num_keys]
    added = np.where(asked, np.float32(0), np.float32(-np.inf)) if asked.dtype == np.bool_ else float32(asked)
    return np.asarray(bias + added)


def _attend(layer: Layer, row: int, query: Array, key: Array, value: Array, bias: Array) -> Array:
    """One row: query [Nq, S, H], key and value [Nkv, keys, H] -> [Nq, S, H]."""
    read = (bias > -np.inf).any(axis=(0, 1))
    if not (bias > -np.inf).any(axis=-1).all():
        raise ValueError(f"{layer} has a query of row {row} that sees none of {bias.shape[-1]} keys")
    key, value, bias = (float32(key[:, read]), float32(value[:, read]), bias[..., read])
    for name, array in (("key", key), ("value", value)):
        if np.isnan(array).any():
            place = np.flatnonzero(read)[np.isnan(array).any(axis=(0, 2)).argmax()]
            raise ValueError(
                f"{layer} reads the {name} at position {place} of row {row}, which was never written (NaN)"
            )
    return _grouped(float32(query), key, value, bias)


def _grouped(query: Array, key: Array, value: Array, bias: Array) -> Array:
    heads, num_queries, _ = query.shape
    grouped = query.reshape(len(key), heads // len(key) * num_queries, -1)
    scores = (grouped @ key.transpose(0, 2, 1)).reshape(heads, num_queries, -1) + bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights.reshape(*grouped.shape[:2], -1) @ value).reshape(heads, num_queries, -1)
