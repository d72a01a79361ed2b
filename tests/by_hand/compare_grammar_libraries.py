"""llguidance beside xgrammar: the same random schemas, and instances of them taken token by token.

Not a test, and xgrammar is no dependency (it brings torch): `pip install xgrammar` into an environment that is not
kept, then `python -m tests.by_hand.compare_grammar_libraries`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, given, settings
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from tests.guided.test_guides import END, VOCAB, begun, tokenizer, tokenizer_json, walked
from tests.support.engine.random_guides import SCHEMAS

COUNT = 150
T = TypeVar("T")


@dataclass
class Times:
    """Seconds."""

    compile: list[float] = field(default_factory=list)
    mask: list[float] = field(default_factory=list)
    take: list[float] = field(default_factory=list)
    refused: int = 0  # instances with a token that was not taken

    def show(self, name: str) -> None:
        print(f"{name}: {self.refused} valid instances refused")
        for what in ("compile", "mask", "take"):
            each = 1e6 * np.array(getattr(self, what))
            p50, p99 = np.percentile(each, [50, 99])
            print(f"  {what:8} mean {each.mean():8.1f} us, p50 {p50:8.1f}, p99 {p99:8.1f}, of {len(each)}")


def main() -> None:
    import xgrammar
    from transformers import PreTrainedTokenizerFast

    ours = LLTokenizer(tokenizer_json(), n_vocab=VOCAB, eos_token=[END])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    info = xgrammar.TokenizerInfo.from_huggingface(fast, vocab_size=VOCAB, stop_token_ids=[END])
    compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
    first, second = Times(), Times()
    bits, theirs = allocate_token_bitmask(1, VOCAB), xgrammar.allocate_token_bitmask(1, VOCAB)
    for schema, ids in instances():
        text = json.dumps(schema)

        def with_llguidance(text: str = text) -> Any:
            return LLMatcher(ours, LLMatcher.grammar_from_json_schema(text, {"whitespace_flexible": False}))

        def with_xgrammar(text: str = text) -> Any:
            return compiler.compile_json_schema(text, any_whitespace=False, separators=(",", ":"))

        matcher = timed(first.compile, with_llguidance)
        follow(first, ids, lambda m=matcher: fill_next_token_bitmask(m, bits), matcher.consume_token)
        other = xgrammar.GrammarMatcher(timed(second.compile, with_xgrammar))
        follow(second, ids, lambda m=other: m.fill_next_token_bitmask(theirs), other.accept_token)
    first.show("llguidance")
    second.show("xgrammar")


def instances() -> list[tuple[dict[str, Any], list[int]]]:
    """(schema, token ids of a random instance, the end among them)"""
    schemas: dict[str, dict[str, Any]] = {}

    @settings(max_examples=2 * COUNT, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(SCHEMAS)
    def collect(schema: dict[str, Any]) -> None:
        schemas[json.dumps(schema)] = schema

    collect()
    found = []
    for number, (text, schema) in enumerate(list(schemas.items())[:COUNT]):
        instance = walked(begun(guided_json=text), random.Random(number))
        if instance is not None:
            found.append((schema, [*tokenizer().encode(instance, add_special_tokens=False).ids, END]))
    return found


def follow(times: Times, ids: Sequence[int], mask: Callable[[], Any], take: Callable[[int], bool]) -> None:
    for token_id in ids:
        timed(times.mask, mask)
        if not timed(times.take, lambda token_id=token_id: take(token_id)):
            times.refused += 1
            return


def timed(into: list[float], work: Callable[[], T]) -> T:
    began = time.perf_counter()
    done = work()
    into.append(time.perf_counter() - began)
    return done


if __name__ == "__main__":
    main()
