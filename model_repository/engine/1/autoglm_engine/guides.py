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
from .errors import EngineError
from .guide_library import compile_guide, read_tokenizer, reason
from .prompt import TOKENIZER_NAME

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Allowed = npt.NDArray[np.bool_]  # [vocab_size]

GUIDES = ("guided_json", "guided_regex", "guided_grammar")
_MOST_KEPT = 64  # guides that were compiled,
_MOST_KEPT_CHARACTERS = 1 << 19  # and of their texts: a long one takes some 15 MB


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
            raise GuideFailed(f"the guide of this request cannot go on: {reason(self._matcher.get_error())}")
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little").view(np.bool_)

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`. One that is not allowed is found by the next call of `allowed`."""
        self._matcher.consume_token(token_id)

    def forced(self) -> list[int]:
        """The tokens that must come next, as the tokenizer would write them; none where there is a choice. Asked of a copy,
        since looking ahead uses up what the library allows one answer."""
        return list(self._matcher.deep_copy().compute_ff_tokens())


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """Compiled, at its beginning."""

    _matcher: LLMatcher
    _vocab_size: int
    _eos_token_ids: frozenset[int]

    def begin(self) -> GuideState:
        return GuideState(self._matcher.deep_copy(), self._vocab_size, self._eos_token_ids)


class Guides:
    """Compiles guides, and keeps those that were used last, for each tenant apart: one that takes no time to compile would
    tell a tenant what others ask for. Any thread may call."""

    def __init__(self, load: Callable[[], LLTokenizer], vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._load = load
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[tuple[str, str, str], Guide] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, folder: Path, vocab_size: int, eos_token_ids: Iterable[int]) -> Guides:
        """Of an artifact's tokenizer, which is read when the first guide is compiled."""
        eos = list(eos_token_ids)
        return cls(lambda: read_tokenizer(folder / TOKENIZER_NAME, vocab_size, eos), vocab_size, eos)

    def compile(self, sampling: SamplingOptions, tenant: str = "") -> Guide | None:
        """None where the request has no guide. Raises InvalidRequest where it cannot be compiled."""
        asked = [(kind, text) for kind in GUIDES if (text := getattr(sampling, kind))]
        if not asked:
            return None
        key = (tenant, *asked[0])
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
            self._tokenizer = self._tokenizer or self._load()
        made = Guide(compile_guide(self._tokenizer, *asked[0]), self._vocab_size, self._eos)
        with self._lock:
            self._keep(key, made)
        return made

    def _keep(self, key: tuple[str, str, str], made: Guide) -> None:
        self._kept[key] = made
        while len(self._kept) > _MOST_KEPT or sum(len(text) for *_, text in self._kept) > _MOST_KEPT_CHARACTERS:
            self._kept.popitem(last=False)
