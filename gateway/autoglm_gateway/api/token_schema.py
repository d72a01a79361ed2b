"""Questions about tokens and their answers, by the names of vLLM's server: `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from autoglm_gateway.strict import Items, Strict
from autoglm_gateway.tools.schema import ToolOptions

from .answer_schema import Count
from .schema import ChatMessage, ProcessorOptions, PromptText, TemplateFields

MAX_TOKENS = 1 << 17  # of a detokenize

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _AboutTokens(Strict):
    """`model`: may be absent where there is only one."""

    model: str | None = None


class TokenizeRequest(_AboutTokens, ToolOptions, TemplateFields):
    """A text or a conversation: one of `prompt` and `messages`. `add_special_tokens`: those that the tokenizer itself
    adds; absent, as where the model is asked: with a prompt alone."""

    prompt: PromptText | None = None
    messages: Annotated[Items[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    mm_processor_kwargs: ProcessorOptions | None = None


class DetokenizeRequest(_AboutTokens):
    tokens: Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_TOKENS)]


class Tokenized(BaseModel):
    count: Count = Field(description="of an image, too: its tokens are the model's one for images, repeated")
    max_model_len: Count = Field(description="most tokens of prompt and answer together")
    tokens: list[int]
    token_strs: list[str] | None = Field(description="as the vocabulary spells them, where they were asked for")


class Detokenized(BaseModel):
    prompt: str = Field(description="special tokens as they are written")
