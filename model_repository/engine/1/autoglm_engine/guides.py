"""Structured output: which tokens a request's JSON schema, regular expression or grammar leaves it next.

llguidance (MIT) compiles each of them against the tokenizer and follows the answer token by token. A guide is compiled where
a request comes in, by the thread that brings it; the step thread copies it, which costs microseconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .core import SamplingOptions
from .errors import EngineError, InvalidRequest
from .prompt import TOKENIZER_NAME

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Allowed = npt.NDArray[np.bool_]  # [vocab_size]

GUIDES = ("guided_json", "guided_regex", "guided_grammar")
_MOST_KEPT = 64  # guides that were compiled
_MOST_SHOWN = 300  # characters of the library's complaint
_INTERNALS = "<state>"  # the library's complaint goes on with what it was doing
_DEAD_END = "NoExtension"
_COMPACT = {"whitespace_flexible": False}  # between JSON's tokens: a small model may write blanks for ever


class GuideFailed(EngineError):
    """The guide of one request cannot go on: it has nothing that may come next, or has become too large."""


class GuideState:
    """Follows one answer. Used by the step thread."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos = eos_token_ids
        self._vocab_size = vocab_size
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)

    def allows(self, token_id: int) -> bool:
        if token_id in self._eos:  # which the library's own check leaves out
            return self._matcher.is_accepting()
        return self._matcher.validate_tokens([token_id]) == 1

    def allowed(self) -> Allowed:
        """The tokens that may come next; the end of the sequence where the answer may end. Raises GuideFailed."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise GuideFailed(f"the guide of this request cannot go on: {_reason(self._matcher.get_error())}")
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little").view(np.bool_)

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`. One that is not allowed is found by the next call of `allowed`."""
        self._matcher.consume_token(token_id)

    def forced(self) -> list[int]:
        """The tokens that must come next, as the tokenizer would write them; none where there is a choice."""
        return list(self._matcher.compute_ff_tokens())


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """Compiled, at its beginning."""

    _matcher: LLMatcher
    _vocab_size: int
    _eos_token_ids: frozenset[int]

    def begin(self) -> GuideState:
        return GuideState(self._matcher.deep_copy(), self._vocab_size, self._eos_token_ids)


class Guides:
    """Compiles guides, and keeps those that were used last. Any thread may call."""

    def __init__(self, load: Callable[[], LLTokenizer], vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._load = load
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[tuple[str, str], Guide] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, folder: Path, vocab_size: int, eos_token_ids: Iterable[int]) -> Guides:
        """Of an artifact's tokenizer, which is read when the first guide is compiled."""
        eos = list(eos_token_ids)
        return cls(lambda: _read_tokenizer(folder / TOKENIZER_NAME, vocab_size, eos), vocab_size, eos)

    def compile(self, sampling: SamplingOptions) -> Guide | None:
        """None where the request has no guide. Raises InvalidRequest where it cannot be compiled."""
        asked = [(kind, text) for kind in GUIDES if (text := getattr(sampling, kind))]
        if not asked:
            return None
        (key,) = asked
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
            self._tokenizer = self._tokenizer or self._load()
        made = self._compile(self._tokenizer, *key)
        with self._lock:
            self._kept[key] = made
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return made

    def _compile(self, tokenizer: LLTokenizer, kind: str, text: str) -> Guide:
        from llguidance import LLMatcher

        matcher = LLMatcher(tokenizer, _as_grammar(kind, text), log_level=0)
        if matcher.is_error():
            raise InvalidRequest(f"{kind} cannot be compiled: {_shown(matcher.get_error())}")
        return Guide(matcher, self._vocab_size, self._eos)


def _as_grammar(kind: str, text: str) -> str:
    """In llguidance's own form."""
    from llguidance import LLMatcher

    match kind:
        case "guided_json":
            try:
                return LLMatcher.grammar_from_json_schema(text, _COMPACT)  # type: ignore[arg-type]
            except ValueError as error:
                raise InvalidRequest(f"guided_json is no JSON schema: {_shown(str(error))}") from None
        case "guided_regex":
            return LLMatcher.grammar_from_regex(text)
        case _:
            return LLMatcher.grammar_from_lark(text)


def _read_tokenizer(path: Path, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    try:
        from llguidance import LLTokenizer
    except ImportError:
        raise InvalidRequest(
            "structured output needs the package llguidance on the server: pip install llguidance"
        ) from None

    return LLTokenizer(path.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=eos_token_ids)


def _reason(complaint: str) -> str:
    return "nothing may come next" if complaint.startswith(_DEAD_END) else _shown(complaint)


def _shown(complaint: str) -> str:
    """On one line, and not all of a long one."""
    line = " ".join(complaint.partition(_INTERNALS)[0].split())
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]} ..."
