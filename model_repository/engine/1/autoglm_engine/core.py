"""The nouns: a request, how it is sampled, what a step computes, and what it answers.

Token ids are int32 everywhere. Times are seconds of `time.monotonic()` (one clock for all processes of a host),
durations that users see are milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .errors import EngineError
from .packed_body import Body

TokenIds = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Features = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]
DEFAULT_PRIORITY = 5


GUIDES = ("guided_json", "guided_regex", "guided_grammar")  # options; a request has one of them


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How one request is sampled and when it ends. Ranges are checked in `options.py`, before this is built."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0  # 0: none; n: the chosen token's and the n most likely ones'
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    guided_json: str = ""  # a JSON schema; of the guides at most one is set
    guided_regex: str = ""
    guided_grammar: str = ""  # Lark, in llguidance's dialect
    guide_after: str = ""  # `guided.after_thinking`; "": the guide holds from the first token
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of token ids that the completion must not hold

    @property
    def is_guided(self) -> bool:
        return bool(self.guided_json or self.guided_regex or self.guided_grammar)


class CacheUse(Enum):
    """What a request allows of the response cache."""

    DEFAULT = "default"
    BYPASS = "bypass"  # neither look nor keep, and share with nobody
    REFRESH = "refresh"  # compute anew, and keep that
    ONLY = "only"  # compute nothing: a miss is an error


class CacheHit(Enum):
    NONE = "none"
    EXACT = "exact"  # a kept answer
    COALESCED = "coalesced"  # the answer of an equal request that was in flight
    SEMANTIC = "semantic"  # a kept answer to a prompt of the same meaning


@dataclass(frozen=True, slots=True)
class SemanticQuery:
    """What of a prompt may be compared by meaning. `context`: a digest of the rest, which must be equal."""

    text: str
    context: str


class AllowedTokens(Protocol):
    """Which tokens a guide leaves an answer, which it follows: `guided.grammar.GuideState`. Used by the step thread."""

    def allows(self, token_id: int) -> bool: ...

    def allowed(self) -> npt.NDArray[np.bool_]:
        """The tokens that may come next; the end of the sequence where the answer may end. Raises GuideFailed."""
        ...

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`. One that is not allowed is found by the next call of `allowed`."""
        ...

    def forced(self) -> list[int]:
        """The tokens that must come next, as the tokenizer would write them; none where there is a choice. Asked of a
        copy, since looking ahead uses up what the library allows one answer."""
        ...


class AskedGuide(Protocol):
    """What a request has of its guide: compiled, or on its way (`guided.pool`)."""

    @property
    def is_ready(self) -> bool:
        """It can begin."""
        ...

    @property
    def failure(self) -> EngineError | None:
        """Why it will never begin."""
        ...

    def start(self) -> None:
        """Have it compiled; any thread. Raises Unavailable, QueueFull among them."""
        ...

    def begin(self) -> AllowedTokens: ...


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """An image of a prompt, whose tokens are `prompt_ids[offset:end]`, row by row of its grid."""

    offset: int
    grid: tuple[int, int]  # rows and columns of tokens
    digest: bytes  # [32], of the image's bytes and of how they are preprocessed

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def end(self) -> int:
        return self.offset + self.num_tokens


class ImageBytes(Protocol):
    """The files of a request's images, which are held until it needs them no more (`engine.images.image_bytes`)."""

    def file(self, image: int) -> bytes:
        """PNG, JPEG or WEBP, of the image of that place in `Request.images`. Not after `release`."""
        ...

    def release(self) -> None:
        """Make room for those of others; any thread. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    id: str
    prompt_ids: TokenIds  # [num_prompt_tokens]
    sampling: SamplingOptions
    stream: bool = False
    arrival: float = 0.0
    deadline: float | None = None
    heartbeat_ms: int | None = (
        None  # silence after which it gets an empty event; None: as the setting says where it streams, else never
    )
    tokenize_ms: float = 0.0
    cache: CacheUse = CacheUse.DEFAULT
    tenant: str = ""  # answers are kept for each tenant apart
    user: str = ""  # whose it is, if the caller says; requests of one user may be served together
    semantic: bool | None = None  # takes the answer to a question of the same meaning; None: as the server is set
    question: SemanticQuery | None = None  # None: nothing of it can be compared
    priority: int = DEFAULT_PRIORITY  # 1 is admitted first
    prompt_lookup: int | None = None  # most tokens drafted at a time; 0: none; None: as the setting says
    guide: AskedGuide | None = None  # of its `sampling`
    images: tuple[ImageSpan, ...] = ()  # of `prompt_ids`, in their order
    prompt_thinks: bool = False  # it ends inside of the model's thinking: the answer begins there
    image_bytes: ImageBytes | None = None  # of `images`; None where it has none, and where nothing is computed for it


class FinishReason(Enum):
    STOP = "stop"  # end-of-sequence token or stop string
    LENGTH = "length"  # max_tokens, or the end of the slot
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens whose keys and values were reused


@dataclass(frozen=True, slots=True)
class Stages:
    """Where a request's time went so far, in milliseconds."""

    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    embed_ms: float = 0.0  # of the question, for the semantic cache


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), most likely first


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of an answer.

    `token_ids` decode on their own to whole characters, so that the pieces' texts joined equal the one-shot decode.
    `text_bytes`: keep that many UTF-8 bytes of this piece's text (a stop string began there); None keeps all.
    An event without tokens, finish reason and error is a heartbeat.
    `error`: the request failed, in one sentence; `error_code` names the Triton status. Such an event is the last one
    and has no finish reason.
    """

    request_id: str
    token_ids: tuple[int, ...]
    usage: Usage
    stages: Stages
    finish_reason: FinishReason | None = None
    text_bytes: int | None = None
    is_first: bool = False
    logprobs: tuple[TokenLogprobs, ...] = ()  # parallel to token_ids where the request asked for them
    error: str | None = None
    error_code: str = ""
    cache_hit: CacheHit = CacheHit.NONE
    cache_age_ms: float = 0.0  # of a kept answer
    body: Body | None = None  # of a long kept answer: `messages.pack_body`, in place of all that it holds

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class Adjustments:
    """How a slot's logits `l` are adjusted where its candidates are chosen: what changed since the slot's last step.

    At each of `token_ids` the logit is `where(l < 0, l * factor, l / factor) + offset`. `reset`: every other token of
    the slot goes back to factor 1 and offset 0 first (another request has the slot now). All of it, the inverse
    temperature too, stays until the slot's next adjustments. They come with spans that want logits, before these are
    computed.
    """

    reset: bool
    token_ids: TokenIds  # [n], each at most once
    factors: npt.NDArray[np.float32]  # [n]
    offsets: npt.NDArray[np.float32]  # [n]; -inf bans a token
    inverse_temperature: float = 1.0  # of `Candidates.log_sum_exp`


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a device that keeps its logits tells of them; a row for each span that wants logits, in the spans' order.

    Equal logits may come in any order. A row with a NaN has no finite `log_sum_exp`. What is promised of its rounding
    is in `sampling.candidates`.
    """

    token_ids: TokenIds  # [num_rows, k], the most likely ones, best first
    logits: Logits  # [num_rows, k], adjusted
    log_sum_exp: Logits  # [num_rows], log(sum(exp(adjusted logit * inverse_temperature))) over the whole vocabulary
    full_row: Callable[
        [int], Logits
    ]  # row -> its unmodified logits [vocab_size], copied when called; until the next step


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence to be computed in a step: `token_ids` go to positions `start ...` of `slot`.

    `num_drafts`: so many of the last ones are guesses. Logits are then wanted of each of them, too, and of the token
    before.

    A token id below 0 stands for a token of an image: in place of an embedding it has a row of `features`. Two tokens
    have the same id exactly where they are the same part of the same image, so that ids alone tell sequences apart.
    """

    slot: int
    start: int
    token_ids: TokenIds  # [num_tokens >= 1]
    wants_logits: bool  # of the last token
    adjustments: Adjustments | None = None  # None: nothing changed, or the runner chooses no candidates
    num_drafts: int = 0  # only where `wants_logits`
    positions: Positions | None = (
        None  # [3, num_tokens], the rotary embedding's: time, row, column; None: `start ...` for all three
    )
    features: Features | None = None  # [number of ids below 0, feature_size], in their order; None: there are none

    @property
    def num_logits(self) -> int:
        """Logits are wanted of so many of the last tokens."""
        return self.num_drafts + 1 if self.wants_logits else 0


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All that one step computes. A slot appears at most once."""

    spans: tuple[Span, ...] = field(default_factory=tuple)

    @property
    def num_tokens(self) -> int:
        return sum(len(span.token_ids) for span in self.spans)
