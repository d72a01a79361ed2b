"""Structured output: which tokens a request's JSON schema, regular expression or grammar leaves it next.

llguidance (MIT) compiles each of them against the tokenizer and follows the answer token by token. A guide is compiled
on threads of its own (`guided.pool`), up to what may come first; the step thread copies it, which costs microseconds.
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

from autoglm_engine.core import GUIDES, SamplingOptions
from autoglm_engine.errors import EngineError
from autoglm_engine.tokenizer.artifact_texts import TOKENIZER_NAME

from .compiler import TokenBits, compile_guide, compute_mask, read_tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Allowed = npt.NDArray[np.bool_]  # [vocab_size]

GuideText = tuple[str, str, str]
Key = tuple[str, str, str, str]  # a tenant, and that

_NO_GUIDE: GuideText = ("", "", "")
_MAX_KEPT = 64  # guides that were compiled,
_MAX_KEPT_CHARACTERS = 1 << 19  # and of their texts: a long one takes some 15 MB


class GuideState:
    """Follows one answer, of which `first` may come first. Used by the step thread."""

    def __init__(self, matcher: LLMatcher, first: TokenBits, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos = eos_token_ids
        self._vocab_size = vocab_size
        self._bits = first.copy()
        self._is_known = True  # `_bits` are of the next token

    def allows(self, token_id: int) -> bool:
        if token_id in self._eos:  # which the library's own check leaves out
            return self._matcher.is_accepting()
        return self._matcher.validate_tokens([token_id]) == 1

    def allowed(self) -> Allowed:
        """The tokens that may come next; the end of the sequence where the answer may end. Raises GuideFailed."""
        if not self._is_known:
            compute_mask(self._matcher, self._bits)
            self._is_known = True
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocab_size, bitorder="little").view(np.bool_)

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`. One that is not allowed is found by the next call of `allowed`."""
        self._matcher.consume_token(token_id)
        self._is_known = False

    def forced(self) -> list[int]:
        """The tokens that must come next, as the tokenizer would write them; none where there is a choice. Asked of a
        copy, since looking ahead uses up what the library allows one answer."""
        return list(self._matcher.deep_copy().compute_ff_tokens())


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """Compiled, at its beginning."""

    _matcher: LLMatcher
    _first: TokenBits
    _vocab_size: int
    _eos_token_ids: frozenset[int]

    @property
    def is_ready(self) -> bool:
        return True

    @property
    def failure(self) -> EngineError | None:
        return None

    def start(self) -> None:
        pass

    def begin(self) -> GuideState:
        return GuideState(self._matcher.deep_copy(), self._first, self._vocab_size, self._eos_token_ids)


class GuideCompiler:
    """Compiles guides, and keeps those that were used last, for each tenant apart: one that takes no time to compile
    would tell a tenant what others ask for. Any thread may call."""

    def __init__(self, load: Callable[[], LLTokenizer], vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._load = load
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[Key, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    @classmethod
    def of(cls, folder: Path, vocab_size: int, eos_token_ids: Iterable[int]) -> GuideCompiler:
        """Of an artifact's tokenizer, which is read when the first guide is compiled."""
        eos = list(eos_token_ids)
        return cls(lambda: read_tokenizer(folder / TOKENIZER_NAME, vocab_size, eos), vocab_size, eos)

    def find(self, sampling: SamplingOptions, tenant: str = "") -> Grammar | None:
        """Where it is kept for this tenant."""
        with self._lock:
            if (kept := self._kept.get(key := (tenant, *guide_text(sampling)))) is not None:
                self._kept.move_to_end(key)
            return kept

    def compile(self, sampling: SamplingOptions, tenant: str = "") -> Grammar | None:
        """None where the request has no guide. May take seconds. Raises InvalidRequest where it cannot be compiled."""
        if not sampling.is_guided:
            return None
        if (kept := self.find(sampling, tenant)) is not None:
            return kept
        with self._loading:
            self._tokenizer = self._tokenizer or self._load()
        first = np.zeros((self._vocab_size + 31) // 32, np.int32)
        matcher = compile_guide(self._tokenizer, *guide_text(sampling), first)
        made = Grammar(matcher, first, self._vocab_size, self._eos)
        with self._lock:
            self._keep((tenant, *guide_text(sampling)), made)
        return made

    def _keep(self, key: Key, made: Grammar) -> None:
        self._kept[key] = made
        while len(self._kept) > _MAX_KEPT or sum(len(text) for _, _, text, _ in self._kept) > _MAX_KEPT_CHARACTERS:
            self._kept.popitem(last=False)


def guide_text(sampling: SamplingOptions) -> GuideText:
    """(kind, text, after what) of the one that it has; empty texts where there is none."""
    return next(((kind, text, sampling.guide_after) for kind in GUIDES if (text := getattr(sampling, kind))), _NO_GUIDE)
