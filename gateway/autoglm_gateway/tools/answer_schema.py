"""What calls in answers look like, for the document at /openapi.json. Nothing is validated with it: tests compare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class FunctionAnswer(BaseModel):
    name: str
    arguments: str = Field(description="a JSON object; where the answer was cut short, its beginning")


class CallAnswer(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionAnswer


class FunctionDelta(BaseModel):
    name: str = Field(default="", description="of a call that begins")
    arguments: str = Field(description="a part of the JSON object")


class CallDelta(BaseModel):
    """A call that begins has all fields; later parts of its arguments have its index."""

    index: Annotated[int, Field(ge=0)]
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta
