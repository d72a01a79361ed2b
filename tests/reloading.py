"""A repository of its own whose artifact is replaced while clients ask: two tiny artifacts of different vocabularies, whose
answers to one prompt differ, and clients that note each answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from autoglm_client import AsyncClient, AutoGLMError, Timeouts
from autoglm_client.local_server import LocalServer
from autoglm_engine.manifest import Manifest
from autoglm_export.staging import staged
from conftest import MODEL_REPOSITORY
from native_artifacts import relist, write_native_artifact
from tiny_decoders import SPECS, random_weights
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

PROMPTS = ("Once upon a time", "The three primary colours", "x", "Reload me while I speak")
MAX_TOKENS = 200
PATIENCE_S = 300.0
_MAX_LENGTH = 256


def write_artifact(folder: Path, *, seed: int, stride: int, vocab_size: int) -> Manifest:
    """One token a byte, in the order that `stride` makes: another one than 1 is another vocabulary."""
    spec = dataclasses.replace(SPECS["llama"], vocab_size=vocab_size)
    weights = {
        name: weight + np.random.default_rng(seed).normal(0, 0.02, weight.shape).astype(weight.dtype)
        for name, weight in random_weights(spec).items()
    }
    write_native_artifact(folder, spec, weights=weights, max_length=_MAX_LENGTH)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: i * stride % 256 for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    relist(folder)
    return Manifest.load(folder)


def write_both(folder: Path) -> tuple[Path, Path]:
    write_artifact(folder / "old", seed=1, stride=1, vocab_size=300)
    write_artifact(folder / "new", seed=2, stride=7, vocab_size=320)
    return folder / "old", folder / "new"


class Repository:
    """A copy of the model repository with an artifact where the exporter puts it."""

    def __init__(self, folder: Path, artifact: Path) -> None:
        self.path = folder / "model_repository"
        shutil.copytree(MODEL_REPOSITORY, self.path, ignore=shutil.ignore_patterns("artifact", "__pycache__"))
        self.install(artifact)

    def install(self, artifact: Path) -> None:
        """As an export does."""
        with staged(self.path / "engine" / "1" / "artifact") as stage:
            shutil.copytree(artifact, stage, dirs_exist_ok=True)

    def serve(self, *arguments: str) -> LocalServer:
        return LocalServer(
            self.path,
            http=False,
            env={"AUTOGLM_CACHE_MODE": "off", "AUTOGLM_NUM_THREADS": "1"},
            arguments=arguments,
        )


@dataclasses.dataclass
class Asked:
    """What clients got since the last look: (prompt, text) of answers, sentences of failures."""

    answers: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


class Crowd:
    """Clients that ask one after the other until they are told to stop; each in turn streams, or takes the answer whole."""

    def __init__(self, url: str, num_clients: int = 8) -> None:
        self._client = AsyncClient(url, timeouts=Timeouts(total=PATIENCE_S))
        self._stopping = False
        self.asked = Asked()
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(num_clients)]

    async def _ask(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stopping:
            prompt, max_tokens = rng.choice(PROMPTS), rng.choice((8, MAX_TOKENS))
            options = {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.0}
            try:
                if rng.random() < 0.7:
                    result = await self._client.stream(prompt, **options).read_all()  # type: ignore[arg-type]
                else:
                    result = await self._client.generate(prompt, **options)  # type: ignore[arg-type]
                self.asked.answers.append((f"{prompt}:{max_tokens}", result.text))
            except AutoGLMError as error:
                self.asked.failures.append(f"{type(error).__name__}: {error}")

    async def until(self, condition: Callable[[Asked], bool], seconds: float = PATIENCE_S) -> None:
        async with asyncio.timeout(seconds):
            while not condition(self.asked):
                await asyncio.sleep(0.02)

    async def stop(self) -> Asked:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._client.close()
        return self.asked


async def answers_of(url: str) -> dict[str, str]:
    """To each prompt, of whatever is served now."""
    async with AsyncClient(url) as client:
        return {
            f"{prompt}:{n}": (await client.generate(prompt, max_tokens=n, ignore_eos=True, temperature=0.0)).text
            for prompt in PROMPTS
            for n in (8, MAX_TOKENS)
        }


def tally(asked: Asked, *known: dict[str, str]) -> Counter[str]:
    """How many answers are wholly the first's, the second's, ..., and nobody's; and failures by their sentence."""
    found: Counter[str] = Counter()
    for prompt, text in asked.answers:
        owner = next((str(i) for i, answers in enumerate(known) if answers[prompt] == text), "mixed")
        found[owner] += 1
    found.update(asked.failures)
    return found


def shown(found: Counter[str]) -> str:
    return json.dumps(found)
