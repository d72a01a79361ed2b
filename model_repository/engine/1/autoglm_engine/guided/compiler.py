"""llguidance as the engine uses it: what it compiles, within which bounds, and what it complains of."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import InvalidRequest

from .after_thinking import after_thinking
from .presets import READY, with_marks

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

T = TypeVar("T")
TokenBits = npt.NDArray[np.int32]  # [ceil(vocab_size / 32)], a bit a token

MAX_ROW_ITEMS = 300  # of the parser's state: an ambiguous grammar ends itself instead of stalling everybody's steps
MAX_LEXER_FUEL = 50_000  # of one token, as the library counts: for the same reason. Some 16 ms
MAX_KEY_PATTERNS = 64  # of a schema: the library compares each with all others, and takes minutes for 1,000
_STACK_BYTES = 64 << 20  # the compiler recurses along chains of references, and a stack that overflows ends the process
_MAX_SHOWN = 300  # characters of a complaint
_INTERNALS = "<state>"  # a complaint goes on with what the library was doing
_DEAD_END = "NoExtension"
# Between JSON's tokens: a small model may write blanks for ever.
_COMPACT: JsonCompileOptions = {"whitespace_flexible": False}
_STACKS = threading.Lock()  # the size of stacks is the process's


class GuideFailed(InvalidRequest):
    """The guide of one request cannot go on: it has nothing that may come next, or has become too large."""


def compile_guide(tokenizer: LLTokenizer, kind: str, text: str, after: str, mask: TokenBits) -> LLMatcher:
    """May take seconds for a large one, without the interpreter's lock. Writes what may come first into `mask`, which
    is where the library does most of its work: copies of the matcher have it. Raises InvalidRequest."""

    def work() -> LLMatcher:
        matcher = _compile(tokenizer, kind, text, after)
        compute_mask(matcher, mask)
        return matcher

    return _with_roomy_stack(work)


def compute_mask(matcher: LLMatcher, mask: TokenBits) -> None:
    """Write which tokens may come next, and the end where the answer may end. Raises GuideFailed."""
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    if matcher.is_error():
        raise GuideFailed(f"the guide of this request cannot go on: {reason(matcher.get_error())}")


def read_tokenizer(path: Path, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    """Takes some tenths of a second. Raises InvalidRequest."""
    try:
        from llguidance import LLTokenizer
    except ImportError:
        missing = "structured output needs the package llguidance on the server: pip install llguidance"
        raise InvalidRequest(missing) from None
    try:
        return LLTokenizer(path.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=eos_token_ids)
    except ValueError as error:
        raise InvalidRequest(
            f"there is no structured output with this model's tokenizer: {shown(str(error))}"
        ) from None


def reason(complaint: str) -> str:
    """Why a guide cannot go on."""
    return "nothing may come next" if complaint.startswith(_DEAD_END) else shown(complaint)


def shown(complaint: str) -> str:
    """On one line; of a long one, which repeats what was sent, the beginning and the end."""
    line = " ".join(complaint.partition(_INTERNALS)[0].split())
    if len(line) <= _MAX_SHOWN:
        return line
    return f"{line[: _MAX_SHOWN // 2]} ... {line[-_MAX_SHOWN // 2 :]}"


def _compile(tokenizer: LLTokenizer, kind: str, text: str, after: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_items_in_row=MAX_ROW_ITEMS, step_lexer_fuel=MAX_LEXER_FUEL)
    grammar = _as_grammar(tokenizer, kind, text)
    if after:
        grammar = after_thinking(grammar, after, partial(tokenizer.tokenize_str, parse_special=True))
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise InvalidRequest(f"{kind} cannot be compiled: {shown(matcher.get_error())}")
    return matcher


def _as_grammar(tokenizer: LLTokenizer, kind: str, text: str) -> str:
    """In llguidance's own form."""
    from llguidance import LLMatcher

    match kind:
        case "guided_json":
            _check_cost(text)
            try:
                return LLMatcher.grammar_from_json_schema(text, _COMPACT)
            except ValueError as error:
                raise InvalidRequest(f"guided_json is no JSON schema: {shown(str(error))}") from None
        case "guided_regex":
            return LLMatcher.grammar_from_regex(text)
        case _ if text in READY:
            encode = partial(tokenizer.tokenize_str, parse_special=True)
            return LLMatcher.grammar_from_lark(with_marks(READY[text], encode))
        case _:
            return LLMatcher.grammar_from_lark(text)


def _check_cost(schema: str) -> None:
    if (count := _num_key_patterns(schema)) > MAX_KEY_PATTERNS:
        raise InvalidRequest(
            f"guided_json has {count} patterns in patternProperties; at most {MAX_KEY_PATTERNS} can be compiled in time"
        )


def _num_key_patterns(schema: str) -> int:
    """0 for what is no JSON: the library says best what is wrong with it."""
    try:
        parts: list[object] = [json.loads(schema)]
    except (ValueError, RecursionError):
        return 0
    count = 0
    while parts:
        match parts.pop():
            case dict() as table:
                patterns = table.get("patternProperties")
                count += len(patterns) if isinstance(patterns, dict) else 0
                parts += table.values()
            case list() as items:
                parts += items
    return count


def _with_roomy_stack(work: Callable[[], T]) -> T:
    """What `work` gives or raises, on a thread of its own."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    with _STACKS:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="compile-guide", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
