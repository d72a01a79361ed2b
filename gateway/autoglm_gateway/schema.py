"""The requests that are understood. A field that is not named here is refused by its name.

Lists end at the first wrong item and objects of very many fields are not looked into: each complaint takes memory.
Names, ranges and defaults are those of OpenAI's API reference; `Extensions` are what its package passes in `extra_body`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

_MOST_UNKNOWN = 16  # fields of one object
_MOST_ITEMS = 2048
_OF_IMAGES = ("http://", "https://", "data:image/")

T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True, max_length=_MOST_ITEMS)]

Penalty = Annotated[float, Field(ge=-2, le=2)]
Tokens = Annotated[int, Field(ge=1)]
PromptText = Annotated[str, Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stop = StopString | Annotated[Items[StopString], Field(max_length=16)]


def _only_off(value: bool) -> bool:
    if value:
        raise PydanticCustomError("not_off", "Input should be false")
    return value


def _only_images(value: str) -> str:
    if not value.startswith(_OF_IMAGES):
        raise PydanticCustomError("no_image", "Input should be an http, https or data:image URL")
    return value


ImageAddress = Annotated[
    str, AfterValidator(_only_images), Field(json_schema_extra={"pattern": f"^({'|'.join(_OF_IMAGES)})"})
]
Off = Annotated[bool, AfterValidator(_only_off), WithJsonSchema({"type": "boolean", "const": False})]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _bound_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + _MOST_UNKNOWN:
            raise PydanticCustomError("too_many_fields", "too many fields that are not known")
        return value


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: ImageAddress
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[Part] | None = None
    name: str | None = None


class StreamOptions(_Strict):
    include_usage: bool = False


class Extensions(_Strict):
    """What this server can do beside: `docs/serving.md` has the ranges."""

    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=10)] | None = None
    ignore_eos: bool | None = None
    cache: Literal["default", "bypass", "refresh", "only"] | None = None
    semantic: bool | None = None
    prompt_lookup: Annotated[int, Field(ge=0, le=16)] | None = None


class Generation(Extensions):
    """What chats and completions have in common."""

    model: str
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Generation):
    messages: Annotated[Items[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class CompletionRequest(Generation):
    prompt: PromptText | Annotated[Items[PromptText], Field(min_length=1, max_length=64)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Off | None = None
