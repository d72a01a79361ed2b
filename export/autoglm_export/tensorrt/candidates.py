"""What a step tells of its logits, computed on the device: candidates, so that no row of logits has to cross to the
host."""

from __future__ import annotations

import numpy as np

from .network import Network, Tensor

MAX_CANDIDATES = 3840  # of TensorRT's top-k


def add_candidates(network: Network, logits: Tensor, vocab_size: int, num_candidates: int) -> None:
    """From `logits` float32 `[B, vocab_size]` the outputs that `autoglm_engine.core.Candidates` is made of.

    Adjusted logits are `where(l < 0, l * logit_factor, l / logit_factor) + logit_offset`: a repetition penalty (Keskar
    et al. 2019) as the factor; presence and frequency penalties, biases and bans as the offset.
    """
    temperature = network.input("inverse_temperature", np.float32, [-1, 1])
    factor = network.input("logit_factor", np.float32, [-1, vocab_size])
    offset = network.input("logit_offset", np.float32, [-1, vocab_size])
    network.output("logits", logits)
    adjusted = network.binary("SUM", _scaled(network, logits, factor), offset)
    best = network.definition.add_topk(adjusted, network.trt.TopKOperation.MAX, num_candidates, 1 << 1)
    network.output("candidate_logits", best.get_output(0))
    network.output("candidate_ids", best.get_output(1))
    network.output("log_sum_exp", _log_sum_exp(network, network.binary("PROD", adjusted, temperature)))


def _scaled(network: Network, logits: Tensor, factor: Tensor) -> Tensor:
    zero = network.constant("zero", np.zeros((1, 1), np.float32))
    negative = network.binary("LESS", logits, zero)
    product, quotient = network.binary("PROD", logits, factor), network.binary("DIV", logits, factor)
    return network.select(negative, product, quotient)


def _log_sum_exp(network: Network, x: Tensor) -> Tensor:
    """Along the vocabulary, [B, 1]."""
    largest = network.reduce("MAX", x, axis=1)
    total = network.reduce("SUM", network.unary("EXP", network.binary("SUB", x, largest)), axis=1)
    return network.binary("SUM", network.unary("LOG", total), largest)
