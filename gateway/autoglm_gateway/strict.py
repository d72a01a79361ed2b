"""What all parts of a request have in common: they say nothing but what is known, and hostile ones cost little.

Lists end at the first wrong item and objects of very many fields are not looked into: each complaint takes memory.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

_MAX_UNKNOWN = 16  # fields of one object
_MAX_ITEMS = 2048

T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True, max_length=_MAX_ITEMS)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _bound_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + _MAX_UNKNOWN:
            raise PydanticCustomError("too_many_fields", "too many fields that are not known")
        return value
