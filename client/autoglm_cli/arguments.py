"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from autoglm_client.async_client import DEFAULT_URL
from autoglm_client.model_names import ENSEMBLE
from autoglm_client.options import GenerationOptions
from autoglm_client.triton_traces import traces_url

from .errors import CommandError

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="AUTOGLM_URL",
        help="Server's gRPC address; of several, set apart by commas, the first that works.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", envvar="AUTOGLM_MODEL", help="Whom to ask, of a server that has several: the name of its ensemble."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="0 is greedy.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Draw from the likeliest tokens of this total probability.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw from so many of the likeliest tokens; 0 is all.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes a drawn answer repeatable.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be given several times.")]
Priority = Annotated[int | None, typer.Option("--priority", help="Who waits for a slot: 1 goes first, 9 last.")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Answers the server keeps: default, bypass, refresh, or only (a miss fails)."),
]
Semantic = Annotated[
    bool | None,
    typer.Option("--semantic/--no-semantic", help="Take a kept answer to a question of the same meaning, or never."),
]
GuidedJson = Annotated[
    str | None,
    typer.Option("--guided-json", help="Only an answer that keeps to this JSON schema: the schema, or @FILE."),
]
GuidedRegex = Annotated[str | None, typer.Option("--guided-regex", help="Only an answer that matches this expression.")]
GuidedGrammar = Annotated[
    str | None,
    typer.Option("--guided-grammar", help="Only an answer of this Lark grammar: its text, @FILE, or open-autoglm."),
]
System = Annotated[str | None, typer.Option("--system", help="System message before the conversation.")]
TimeLimit = Annotated[float | None, typer.Option("--time-limit", min=0.001, help="Seconds for the whole answer.")]
Repository = Annotated[
    Path | None,
    typer.Option(
        "--repository", envvar="AUTOGLM_REPOSITORY", help="Triton model repository. \\[default: the bundled one]"
    ),
]
Artifact = Annotated[
    Path | None,
    typer.Option(
        "--artifact",
        envvar="AUTOGLM_ARTIFACT",
        help="Exported model: its folder, or its name in `autoglm models`. "
        "\\[default: a checkout's own, else the only one of `autoglm models`]",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        help=(
            "onnx, native, tensorrt, tensorrt-rtx, or auto: native or onnx, what is measured to be faster here. "
            "\\[default: auto]"
        ),
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="native: int8; onnx: int8 or fp32 on a CPU, fp16 on a GPU; TensorRT: bf16, fp16, fp8 or int4. "
        "\\[default: int8; TensorRT: bf16]",
    ),
]


def _collector(endpoint: str | None) -> str | None:
    try:
        if endpoint is not None:
            traces_url(endpoint)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return endpoint


Otlp = Annotated[
    str | None,
    typer.Option(
        "--otlp",
        envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
        callback=_collector,
        help="Send traces to the collector there (OTLP over HTTP), such as http://127.0.0.1:4318. \\[default: none]",
    ),
]

DEFAULT_URLS = DEFAULT_URL
DEFAULT_MODEL = ENSEMBLE


def urls_of(text: str) -> tuple[str, ...]:
    """Raises CommandError for an address of HTTP."""
    urls = tuple(part.strip() for part in text.split(",") if part.strip()) or (DEFAULT_URL,)
    if wrong := [url for url in urls if url.startswith(("http://", "https://"))]:
        raise CommandError(f"the address is {wrong[0]!r}; it must be host:port of a gRPC endpoint, without http://")
    return urls


@dataclass(frozen=True, slots=True)
class Sampling:
    """The options a person sets on the command line."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    cache: str | None = None
    semantic: bool | None = None
    guided_json: str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    priority: int | None = None

    def options(self) -> GenerationOptions:
        return GenerationOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop or None,
            cache=self.cache,
            semantic=self.semantic,
            guided_json=_text_of("--guided-json", self.guided_json),
            guided_regex=self.guided_regex,
            guided_grammar=_text_of("--guided-grammar", self.guided_grammar),
            priority=self.priority,
        )


def _text_of(option: str, value: str | None) -> str | None:
    """Of a file, where `value` is @ and its name."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{option} names {value[1:]}, which cannot be read: {error}") from None
