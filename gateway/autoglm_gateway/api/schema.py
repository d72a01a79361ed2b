"""The requests that are understood. A field that is not named here is refused by its name.

Names, ranges and defaults are those of OpenAI's API reference; `Extensions` are what its package passes in
`extra_body`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from autoglm_gateway import priorities
from autoglm_gateway.strict import Items, Strict
from autoglm_gateway.tools.schema import ToolOptions, ToolTurn

from .extensions import Extensions
from .router_defaults import Off, RouterDefaults

_OF_IMAGE = re.compile(r"^data:image/(png|jpe?g|webp);base64,", re.IGNORECASE)

Penalty = Annotated[float, Field(ge=-2, le=2)]
Tokens = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, lt=2**53)]
PromptText = Annotated[str, Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stop = StopString | Annotated[Items[StopString], Field(max_length=16)]


def _only_data(value: str) -> str:
    if not _OF_IMAGE.match(value):
        raise PydanticCustomError(
            "no_image",
            "no URL is fetched; it should be a data URL of a PNG, JPEG or WEBP file, data:image/png;base64,...",
        )
    return value


ImageData = Annotated[str, AfterValidator(_only_data), Field(json_schema_extra={"pattern": _OF_IMAGE.pattern})]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """`detail`: low makes it 512 x 512 pixels at most; auto and high are the limits of the model that is served."""

    url: ImageData
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(ToolTurn):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[Part] | None = None
    name: str | None = None
    reasoning_content: str | None = None  # of an assistant
    refusal: None = None  # which answers have that are sent back


class StreamOptions(Strict):
    include_usage: bool = False


class JsonSchema(Strict):
    """`strict` is always meant: an answer keeps to its schema."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class Generation(Extensions, RouterDefaults):
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
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    priority: Annotated[int, Field(ge=priorities.BEST, le=priorities.LAST)] | None = None  # vLLM's

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ImageEdges(Strict):
    """transformers' names for `min_pixels` and `max_pixels`."""

    shortest_edge: Pixels | None = None
    longest_edge: Pixels | None = None


class ProcessorOptions(Strict):
    """vLLM's `mm_processor_kwargs`, for all images of the request: pixels are counted as the checkpoint does."""

    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    size: ImageEdges | None = None


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TemplateVariables = Annotated[dict[str, Any], Field(max_length=64)]


class TemplateFields(Strict):
    """vLLM's, about what the chat template makes of messages. `reasoning_effort`, OpenAI's, is one of the
    `chat_template_kwargs` to the templates."""

    chat_template_kwargs: TemplateVariables | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: ReasoningEffort | None = None


class ReasoningFields(Strict):
    """`separate_reasoning` false, SGLang's: thinking stays in the content. `include_reasoning` false, vLLM's: it is
    left out of the answer."""

    separate_reasoning: bool | None = None
    include_reasoning: bool | None = None


class ChatRequest(TemplateFields, ReasoningFields, Generation, ToolOptions):
    messages: Annotated[Items[ChatMessage], Field(min_length=1)]
    mm_processor_kwargs: ProcessorOptions | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(Generation):
    prompt: PromptText | Annotated[Items[PromptText], Field(min_length=1, max_length=64)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Off | None = None
