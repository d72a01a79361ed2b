"""The inputs by which clients of other backends ask: NVIDIA's tensorrtllm_backend and vllm_backend, and genai-perf for
both.

Of what they ask that this server does not do, a request is refused by name, unless it asks for what is done anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Meaning(Enum):
    RENAMED = "renamed"  # an option of ours, `option`
    SEED = "seed"  # an unsigned seed
    LOGPROBS = "logprobs"  # true: log-probabilities, at least of the chosen token
    ONLY = "only"  # `value` alone is taken, which is what is done anyway
    NOTHING = "nothing"  # takes part in nothing that is done here
    OWN_RULE = "own rule"  # see `foreign_options`


@dataclass(frozen=True, slots=True)
class ForeignInput:
    """`dtype` is Triton's. `reason` completes a refusal: "beam_width is 4; it must be 1, since ..."."""

    name: str
    dtype: str
    meaning: Meaning
    option: str = ""
    value: Any = None
    reason: str = ""
    is_list: bool = False


def _only(name: str, dtype: str, value: Any, reason: str) -> ForeignInput:
    return ForeignInput(name, dtype, Meaning.ONLY, value=value, reason=reason)


_ONE_ANSWER = "a request has one answer here: send several, each with a seed of its own"
_NO_LOGITS = "logits do not leave the engine: ask for logprobs"
NO_PROMPT = "the prompt is no part of an answer here"

FOREIGN_INPUTS = {
    foreign.name: foreign
    for foreign in (
        ForeignInput("stop_words", "STRING", Meaning.RENAMED, "stop", is_list=True),
        ForeignInput("min_length", "INT32", Meaning.RENAMED, "min_tokens"),
        ForeignInput("random_seed", "UINT64", Meaning.SEED),
        ForeignInput("unsigned_seed", "UINT64", Meaning.SEED),
        ForeignInput("return_log_probs", "BOOL", Meaning.LOGPROBS),
        ForeignInput("return_logprobs", "BOOL", Meaning.LOGPROBS),
        ForeignInput("return_cumulative_logprob", "BOOL", Meaning.LOGPROBS),
        _only("exclude_input_in_output", "BOOL", True, NO_PROMPT),
        _only("beam_width", "INT32", 1, _ONE_ANSWER),
        _only("num_return_sequences", "INT32", 1, _ONE_ANSWER),
        _only("return_context_logits", "BOOL", False, _NO_LOGITS),
        _only("return_generation_logits", "BOOL", False, _NO_LOGITS),
        _only("return_perf_metrics", "BOOL", False, "what a request took is in stage_times and cached_tokens"),
        ForeignInput("return_num_input_tokens", "BOOL", Meaning.NOTHING),
        ForeignInput("return_num_output_tokens", "BOOL", Meaning.NOTHING),
        ForeignInput("return_finish_reason", "BOOL", Meaning.NOTHING),
        ForeignInput("pad_id", "INT32", Meaning.NOTHING),
        ForeignInput("length_penalty", "FP32", Meaning.NOTHING),
        ForeignInput("end_id", "INT32", Meaning.OWN_RULE),
        ForeignInput("embedding_bias_words", "STRING", Meaning.OWN_RULE, is_list=True),
        ForeignInput("embedding_bias_weights", "FP32", Meaning.OWN_RULE, is_list=True),
        ForeignInput("guided_decoding_guide_type", "STRING", Meaning.OWN_RULE),
        ForeignInput("guided_decoding_guide", "STRING", Meaning.OWN_RULE),
        ForeignInput("sampling_parameters", "STRING", Meaning.OWN_RULE),
    )
}
