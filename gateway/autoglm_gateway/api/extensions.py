"""The fields of a request beside those of OpenAI's API. Made by `make options`; not to be edited."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from autoglm_gateway.strict import Items, Strict


class Extensions(Strict):
    """What this server can do beside: `docs/architecture.md` says what each means."""

    min_tokens: Annotated[int, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-06, le=10)] | None = None
    ignore_eos: bool | None = None
    prompt_lookup: Annotated[int, Field(ge=0, le=16)] | None = None
    cache: Literal["default", "bypass", "refresh", "only"] | None = None
    semantic: bool | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    bad_words: Annotated[Items[Annotated[str, Field(max_length=256)]], Field(max_length=64)] | None = None
