"""What the client answers. Durations are milliseconds, measured by the server unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from .images.image import Image

Content = str | Sequence[str | Image | Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is `system`, `user` or `assistant` (the model's template decides). `content`:
    a text, or a list of texts, `Image`s, and parts as OpenAI's API has them (text, and image_url with a data URL)."""

    role: str
    content: Content


Conversation = Sequence[Message | Mapping[str, Any]]
Prompt = str | Conversation


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens whose keys and values the server had already


@dataclass(frozen=True, slots=True)
class StageTimes:
    queue_ms: float
    tokenize_ms: float
    prefill_ms: float
    decode_ms: float
    detokenize_ms: float
    embed_ms: float = 0.0  # of the question, where the semantic cache was asked
    network_ms: float = 0.0  # from sending to arrival, without the rest: connecting, network, Triton, this client

    @property
    def server_ms(self) -> float:
        return self.queue_ms + self.tokenize_ms + self.embed_ms + self.prefill_ms + self.decode_ms + self.detokenize_ms


@dataclass(frozen=True, slots=True)
class Candidate:
    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    token: str
    logprob: float
    top: tuple[Candidate, ...]  # most likely first


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as it arrives; the texts joined are the answer. The last one has a finish reason."""

    text: str
    finish_reason: str | None  # "stop", "length", "cancelled", "deadline"; None before the end
    usage: Usage  # so far
    stages: StageTimes  # so far
    logprobs: tuple[TokenLogprob, ...] = ()
    # "exact": a kept answer; "semantic": one to a question of the same meaning; "coalesced": that of an equal request
    # in flight
    cache_hit: str = "none"
    cache_age_ms: float = 0.0  # of a kept answer
    prompt_thinks: bool = False  # the prompt ends inside of the model's thinking: the answer's text begins there


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer. `total_ms` and `time_to_first_token_ms` are measured by the client, from call to when the piece
    was read."""

    text: str
    finish_reason: str
    usage: Usage
    stages: StageTimes
    total_ms: float
    time_to_first_token_ms: float | None  # None: not streamed, the answer came whole
    request_id: str
    endpoint: str
    logprobs: tuple[TokenLogprob, ...] = ()
    cache_hit: str = "none"
    cache_age_ms: float = 0.0
    prompt_thinks: bool = False  # as of `Piece`
    attempts: int = 1  # how often the request was sent; more than 1: earlier ones failed, or their connection broke

    @property
    def tokens_per_second(self) -> float:
        """How fast the tokens after the first one were made, by the server's clock: tokens that share a response arrive
        at once, so arrivals would flatter. Of the whole request where there is one token or none."""
        if self.usage.completion_tokens < 2:
            return 1000 * self.usage.completion_tokens / self.total_ms
        return 1000 * (self.usage.completion_tokens - 1) / max(self.stages.decode_ms, 1e-3)


@dataclass(frozen=True, slots=True)
class Health:
    live: bool  # the server's process answers
    ready: bool  # the server, each model and the engine's loop answer
    models: dict[str, bool] = field(default_factory=dict)
    detail: str = ""  # why not, in one sentence


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """`begin` and `end`: around what a model thinks before it answers, such as <think> and </think>. `answer_begin`,
    `answer_end`: around the answer after it, such as <answer> and </answer>; "" for none."""

    begin: str
    end: str
    answer_begin: str = ""
    answer_end: str = ""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Of the model that is served. `max_length`: most tokens of prompt and answer together; `num_slots`: most requests
    computed at once; `call_form`: how it writes calls of functions, None where it has no chat template; `call_tokens`:
    those that calls are made of, and their ids; `max_images`: most images of a request, 0 for a model that reads text
    only; `thinking`: the marks around what it thinks, None where its chat template shows none."""

    max_length: int
    vocab_size: int
    num_slots: int
    call_form: Mapping[str, Any] | None = None
    call_tokens: Mapping[str, int] = field(default_factory=dict)
    max_images: int = 0
    thinking: ThinkingMarks | None = None


class TokenizeOptions(TypedDict, total=False):
    """`add_special_tokens`: those that the tokenizer itself adds, by default to a text and not to messages.
    `add_generation_prompt`, `continue_final_message`: as of a request that is answered. `return_token_strs`: by default
    false."""

    add_special_tokens: bool
    add_generation_prompt: bool
    continue_final_message: bool
    return_token_strs: bool


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """Of a prompt that was not answered. An image's tokens are the model's one token id for images, repeated.
    `token_strs`: each token as the vocabulary spells it; None where they were not asked for."""

    token_ids: tuple[int, ...]
    token_strs: tuple[str, ...] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    name: str
    version: str
    platform: str
    ready: bool
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class ModelCounters:
    """Triton's own counters of one model since it was loaded."""

    requests: int
    executions: int
    succeeded: int
    failed: int
    queue_ms: float  # total of all requests
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Stats:
    engine: dict[str, Any]  # the engine's counters, as it names them
    models: dict[str, ModelCounters]
