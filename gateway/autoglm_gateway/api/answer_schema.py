"""What answers look like, for the document at /openapi.json. Nothing is validated with it: tests compare.

Every field is there in every answer, null where it has no value, unless it has a default here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from autoglm_gateway.tools.answer_schema import CallAnswer, CallDelta

Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]
FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorDetail(BaseModel):
    message: str = Field(description="one sentence")
    type: str
    param: str | None = Field(description="the field at fault")
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class PromptTokensDetails(BaseModel):
    cached_tokens: Count


class UsageAnswer(BaseModel):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails


class AboutAnswer(BaseModel):
    """Beyond OpenAI's API."""

    cache_hit: Literal["none", "exact", "semantic", "coalesced"]
    cache_age_ms: Milliseconds
    stages: dict[str, Milliseconds] = Field(description="where the time went, in milliseconds")


class TokenEntry(BaseModel):
    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class TokenLogprobEntry(TokenEntry):
    top_logprobs: list[TokenEntry]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprobEntry]
    refusal: None


class ChatAnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = Field(default="", description="what the model thought before it answered")
    tool_calls: list[CallAnswer] = Field(default=[])


class ChatChoice(BaseModel):
    index: Count
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class _Whole(BaseModel):
    id: str
    created: Count = Field(description="seconds since 1970")
    model: str = Field(description="the name that was asked for")
    usage: UsageAnswer
    autoglm: AboutAnswer


class ChatCompletion(_Whole):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ChatDelta(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = ""
    reasoning_content: str = ""
    tool_calls: list[CallDelta] = Field(default=[])


class ChatChunkChoice(BaseModel):
    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class _Chunk(BaseModel):
    """`usage`: in the last one, where it was asked for; `autoglm`: in the last one of each choice."""

    id: str
    created: Count
    model: str
    usage: UsageAnswer | None = None
    autoglm: AboutAnswer | None = None


class ChatCompletionChunk(_Chunk):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class TextChoice(BaseModel):
    index: Count
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(_Whole):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class TextChunkChoice(BaseModel):
    index: Count
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletionChunk(_Chunk):
    object: Literal["text_completion"]
    choices: list[TextChunkChoice]


class ModelAnswer(BaseModel):
    id: str
    object: Literal["model"]
    created: Count
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelAnswer]


class Liveness(BaseModel):
    live: Literal[True]


class Version(BaseModel):
    version: str


class Readiness(BaseModel):
    ready: bool
    detail: str = Field(description="why not, in one sentence")
