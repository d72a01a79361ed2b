"""Random schemas and expressions through the whole path: the real model, sampled, in company, keeps to each of them.

AUTOGLM_RANDOM_GUIDES=500 asks for as many; the suite asks for 64.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import AsyncClient, GenerationOptions, InvalidRequestError, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.engine.random_guides import REGEXES, SCHEMAS, check_json, check_regex

pytestmark = pytest.mark.server

IN_FLIGHT = 16
ROUNDS = int(os.environ.get("AUTOGLM_RANDOM_GUIDES", "64")) // IN_FLIGHT


@dataclass(frozen=True)
class Asked:
    """One request: a schema, an expression, or (the company) neither."""

    schema: dict[str, Any] | None = None
    pattern: str | None = None

    @property
    def options(self) -> GenerationOptions:
        schema = None if self.schema is None else json.dumps(self.schema)
        return GenerationOptions(
            max_tokens=160, temperature=0.8, seed=1, guided_json=schema, guided_regex=self.pattern, cache="bypass"
        )

    def check(self, text: str) -> None:
        if self.schema is not None:
            check_json(self.schema, text)
        if self.pattern is not None:
            check_regex(self.pattern, text)


ASKED = st.one_of(SCHEMAS.map(lambda schema: Asked(schema=schema)), REGEXES.map(lambda pattern: Asked(pattern=pattern)))


@pytest.fixture(scope="module")
def ends() -> Iterator[Counter[str]]:
    counted: Counter[str] = Counter()
    yield counted
    print(f"random guides: {dict(counted)}")


@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=st.lists(ASKED, min_size=IN_FLIGHT, max_size=IN_FLIGHT))
def test_every_completed_answer_keeps_to_its_form(server: LocalServer, ends: Counter[str], asked: list[Asked]) -> None:
    free = Asked()
    for one, answer in zip([*asked, free], asyncio.run(_answers(server.grpc_url, [*asked, free])), strict=True):
        if isinstance(answer, InvalidRequestError):
            assert "nsatisfiable" in str(answer), (one, answer)
            ends["unsatisfiable"] += 1
            continue
        assert isinstance(answer, Result), answer
        if one != free:
            ends[answer.finish_reason] += 1
        if answer.finish_reason == "stop":
            one.check(answer.text)


def test_most_answers_were_completed(ends: Counter[str]) -> None:
    """Or the property above would say little."""
    assert ends["stop"] > 0.7 * ends.total()


async def _answers(url: str, asked: list[Asked]) -> list[Result | BaseException]:
    async with AsyncClient(url) as client:
        jobs = (client.chat([{"role": "user", "content": "Give me an example."}], one.options) for one in asked)
        return await asyncio.gather(*jobs, return_exceptions=True)


def key_patterns(count: int) -> str:
    """A schema that took minutes to compile, on the thread that arrivals, cancels and the health probe come through."""
    return json.dumps({"patternProperties": {f"^x{i}[a-z]*$": {"type": "integer"} for i in range(count)}})


def test_schemas_that_cost_too_much_are_refused_and_large_ones_keep_nobody_waiting(server: LocalServer) -> None:
    large = [
        json.dumps(
            {"properties": {f"p{i}": {"type": "string", "maxLength": n + 3} for i in range(1300)}},
            separators=(",", ":"),
        )
        for n in range(4)
    ]

    async def ask() -> list[Result | BaseException]:
        async with AsyncClient(server.grpc_url) as client:
            options = [
                GenerationOptions(max_tokens=4, cache="bypass", guided_json=schema)
                for schema in [*[key_patterns(1300)] * 4, *large]
            ]
            free = [GenerationOptions(max_tokens=4, cache="bypass")] * 8
            return await asyncio.gather(
                *(client.generate("A", one) for one in [*options, *free]), return_exceptions=True
            )

    refused, compiled, free = (lambda all_: (all_[:4], all_[4:8], all_[8:]))(asyncio.run(ask()))
    assert all(isinstance(one, InvalidRequestError) and "at most 64 can be compiled" in str(one) for one in refused)
    assert all(isinstance(one, Result) for one in [*compiled, *free]), (compiled, free)
    assert server.is_healthy(60)
