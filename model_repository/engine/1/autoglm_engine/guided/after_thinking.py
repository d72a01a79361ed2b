"""Guides that hold after a model's thinking: a grammar in which free text and a closing mark come first.

A guide that held from the first token would forbid the marks, so that the model could not think, or, where the prompt
has opened its thinking, would have it answer inside of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autoglm_engine.errors import InvalidRequest

from .presets import READY

if TYPE_CHECKING:
    from autoglm_engine.core import SamplingOptions
    from autoglm_engine.tokenizer.rendering.thinking import PromptThinking

# Blanks before the answer belong to no guide; models write some after their closing mark.
_BLANKS = "BLANKS: /[ \\n]{1,4}/"


def resolved(sampling: SamplingOptions, thinking: PromptThinking | None) -> str:
    """`guide_after` as the engine takes it: "", or JSON of the marks, the opening one "" where the prompt has it. A
    ready grammar has thoughts of its own. `thinking`: of the prompt; None of a model that does not think."""
    if not sampling.guide_after or not sampling.is_guided or sampling.guided_grammar in READY:
        return ""
    if thinking is None or thinking.is_closed:
        return ""
    return json.dumps(["" if thinking.is_open else thinking.marks.begin, thinking.marks.end])


def after_thinking(grammar: str, after: str, encode: Callable[[str], Sequence[int]]) -> str:
    """`grammar` in llguidance's own form or in Lark, behind what `resolved` says. `encode`: a text's token ids."""
    begin, end = _read(after)
    opened = f"({_mark(begin, encode)} rest BLANKS?)?" if begin else "rest BLANKS?"
    rules = ["%llguidance {}", f"start: {opened} @answer", *_rest(end, encode), _BLANKS]
    inner = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    inner = [{**inner[0], "name": "answer"}, *inner[1:]]
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}, *inner]})


def _rest(end: str, encode: Callable[[str], Sequence[int]]) -> list[str]:
    """Any text up to the closing mark, which is a token that the library takes for no text, or its letters."""
    if len(encode(end)) == 1:
        return [f"rest: THOUGHT? {_mark(end, encode)}", "THOUGHT: /(?s:.+)/"]
    return [f"rest[suffix={json.dumps(end)}]: /(?s:.*)/"]


def _mark(mark: str, encode: Callable[[str], Sequence[int]]) -> str:
    ids = encode(mark)
    return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(mark, ensure_ascii=False)


def _read(after: str) -> tuple[str, str]:
    try:
        begin, end = json.loads(after)
    except (ValueError, TypeError):
        raise InvalidRequest(f"guide_after is {after!r:.40}, which the tokenizer model does not write") from None
    return str(begin), str(end)
