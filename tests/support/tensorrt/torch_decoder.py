"""A decoder in torch, over caches that lie where somebody says: the reference of the GPU tests, and what computes in
place of TensorRT where a machine has torch and no TensorRT. Nothing in it waits for the device, so its steps can be
captured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from autoglm_export.model.decoder import build_decoder
from autoglm_export.model.spec import ModelSpec

Tensor = Any  # torch.Tensor


class TorchWeights(Mapping[str, Tensor]):
    """The weights of `source` on a device, in `dtype`; norms and biases in float32."""

    def __init__(self, source: Mapping[str, Any], dtype: Any = torch.float32, device: str = "cpu") -> None:
        self._held = {}
        for name in source:
            values = torch.from_numpy(np.ascontiguousarray(source[name])).to(device)
            self._held[name] = values.to(dtype if values.dim() > 1 else torch.float32)

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


@dataclass
class TorchOps:
    """`Ops` over float32 rows `[B, S, width]`; products and attention in the type of the weights. `inputs`: the tensors
    of an engine's contract by name; caches are written in place."""

    spec: ModelSpec
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    tables: tuple[Tensor, Tensor]  # sines and cosines, [positions, dims / 2]
    result: Tensor = None

    def embed(self, weight: str) -> Tensor:
        return self.weights[weight][self.inputs["token_ids"].long()].float()

    def rms_norm(self, x: Tensor, weight: str) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.spec.norm_eps) * self.weights[weight]

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: str) -> tuple[Tensor, Tensor]:
        total = x + delta
        return total, self.rms_norm(total, weight)

    def linear(self, x: Tensor, *layers: str) -> Tensor:
        return torch.cat([self._linear(x, name) for name in layers], dim=-1)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up

    def add_features(self, x: Tensor, part: int) -> Tensor:
        raise NotImplementedError("no runtime that this stands for adds features")

    def select_rows(self, x: Tensor) -> Tensor:
        index = self.inputs["logit_indices"].long()[:, :, None]
        return x.gather(1, index.expand(-1, -1, x.shape[2]))

    def logits(self, x: Tensor, weight: str) -> None:
        table = self.weights[weight]
        self.result = (x[:, 0].to(table.dtype) @ table.T).float()

    def attention(self, qkv: Tensor, layer: int, query_norm: str | None, key_norm: str | None) -> Tensor:
        spec = self.spec
        batch, tokens, _ = qkv.shape
        heads = qkv.reshape(batch, tokens, -1, spec.head_size)
        query, key, value = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=2)
        keys = self._cached(f"past_key_{layer}", self._turned(key, key_norm))
        values = self._cached(f"past_value_{layer}", value)
        attended = self._attended(self._turned(query, query_norm).transpose(1, 2), keys, values)
        return attended.transpose(1, 2).reshape(batch, tokens, -1).float()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        product = (x.to(weight.dtype) @ weight.T).float()
        return product + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else product

    def _turned(self, x: Tensor, norm: str | None) -> Tensor:
        rope = self.spec.rope
        heads = x if norm is None else self.rms_norm(x, norm)
        positions = self.inputs["position_ids"].long()
        sin, cos = (table[positions][:, :, None] for table in self.tables)
        half, step = (1, 2) if rope.interleaved else (rope.dims // 2, 1)
        first = slice(0, rope.dims if rope.interleaved else half, step)
        second = slice(half, rope.dims, step)
        turned = heads.clone()
        turned[..., first] = heads[..., first] * cos - heads[..., second] * sin
        turned[..., second] = heads[..., second] * cos + heads[..., first] * sin
        return turned

    def _cached(self, name: str, new: Tensor) -> Tensor:
        """[B, kv heads, K, head_size]: the positions that are read, `new` [B, S, kv heads, head_size] among them."""
        cache = self.inputs[name]
        begin = self.inputs["write_indices"].long()[:, None]
        places = begin + torch.arange(new.shape[1], device=new.device)
        index = places[:, None, :, None].expand(-1, cache.shape[1], -1, cache.shape[3])
        cache.scatter_(2, index, new.transpose(1, 2).to(cache.dtype))
        return cache[:, :, : len(self.inputs["key_positions"])]

    def _attended(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen = self.inputs["key_positions"][None, None, None] <= self.inputs["position_ids"][:, None, :, None]
        dtype = keys.dtype if self._computes_in_half() else torch.float32
        group = self.spec.num_heads // self.spec.num_kv_heads
        keys, values = (part.to(dtype).repeat_interleave(group, dim=1) for part in (keys, values))
        return functional.scaled_dot_product_attention(query.to(dtype), keys, values, attn_mask=seen)

    def _computes_in_half(self) -> bool:
        return bool(self.weights["layers.0.query.weight"].dtype != torch.float32)


class TorchDecoder:
    """One step of an engine's contract (`tensorrt.lowering`), from its input tensors to its output tensors, which are
    written in place. `length`: positions that the rope tables hold."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Tensor], length: int, device: str = "cpu") -> None:
        self._spec, self._weights = spec, weights
        tables = (torch.from_numpy(table.astype(np.float32)) for table in spec.rope.sines_and_cosines(length))
        sin, cos = (table.to(device) for table in tables)
        self._tables = sin, cos

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """float32 [B, vocab_size]; writes the caches among `inputs`."""
        ops = TorchOps(self._spec, self._weights, inputs, self._tables)
        build_decoder(self._spec, ops)
        return ops.result

    def compute(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            logits = self.logits(inputs)
            factor, offset = inputs["logit_factor"], inputs["logit_offset"]
            adjusted = torch.where(logits < 0, logits * factor, logits / factor) + offset
            best, ids = adjusted.topk(outputs["candidate_ids"].shape[1], dim=1)
            outputs["logits"].copy_(logits)
            outputs["candidate_logits"].copy_(best)
            outputs["candidate_ids"].copy_(ids)
            log_sum = torch.logsumexp(adjusted * inputs["inverse_temperature"], dim=1, keepdim=True)
            outputs["log_sum_exp"].copy_(log_sum)
