"""What is asked of an answer: sampling, form, the response cache, and time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from autoglm_client.options import GenerationOptions
from autoglm_client.timeouts import Timeouts

from .shared import text_of_file

MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Sample from the most likely tokens that have this total probability.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Sample from this many of the most likely tokens; 0 is all.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes a sampled answer repeatable.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End the answer before this text. Repeatable.")]
Priority = Annotated[int | None, typer.Option("--priority", help="Place in the queue: 1 goes first, 9 last.")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Use of cached answers: default, bypass, refresh, or only (a miss fails)."),
]
Semantic = Annotated[
    bool | None,
    typer.Option(
        "--semantic/--no-semantic", help="Accept a cached answer to a question of the same meaning, or never."
    ),
]
GuidedJson = Annotated[
    str | None,
    typer.Option("--guided-json", help="Force an answer that follows this JSON schema: its text, or @FILE."),
]
GuidedRegex = Annotated[
    str | None, typer.Option("--guided-regex", help="Force an answer that matches this regular expression.")
]
GuidedGrammar = Annotated[
    str | None,
    typer.Option(
        "--guided-grammar", help="Force an answer that follows this Lark grammar: its text, @FILE, or open-autoglm."
    ),
]
System = Annotated[str | None, typer.Option("--system", help="System message, before the conversation.")]
TimeLimit = Annotated[float | None, typer.Option("--time-limit", min=0.001, help="Seconds for the whole answer.")]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    PANEL: ClassVar = "Answer"

    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    seed: Seed = None
    stop: Stop = None
    cache: Cache = None
    semantic: Semantic = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_grammar: GuidedGrammar = None
    priority: Priority = None
    time_limit: TimeLimit = None

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

    def timeouts(self) -> Timeouts:
        return Timeouts() if self.time_limit is None else Timeouts(total=self.time_limit)


def _text_of(option: str, value: str | None) -> str | None:
    """Of a file, where `value` is @ and its name."""
    return text_of_file(option, Path(value[1:])) if value is not None and value.startswith("@") else value
