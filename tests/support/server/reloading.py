"""A repository of its own whose artifact is replaced while clients ask: two tiny artifacts of different vocabularies,
whose answers to one prompt differ, and clients that note each answer."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import AsyncClient, AutoGLMError, GenerationOptions
from autoglm_engine.manifest import Manifest
from autoglm_export.artifact_writer import staged
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests.conftest import MODEL_REPOSITORY
from tests.support.export.native_artifacts import relist, write_native_artifact
from tests.support.export.tiny_decoders import SPECS, random_weights

POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")
EXPLICIT = ("--model-control-mode=explicit", "--load-model=autoglm")
PATIENCE_SECONDS = 300.0
PROMPTS = ("Once upon a time", "The three primary colours", "x", "Reload me while I speak")
LENGTHS = (8, 200)  # tokens of an answer
Question = tuple[str, int]
QUESTIONS: tuple[Question, ...] = tuple((prompt, length) for prompt in PROMPTS for length in LENGTHS)
Answers = dict[Question, str]
_MAX_LENGTH = 256


def write_artifact(folder: Path, *, seed: int, stride: int, vocab_size: int, max_length: int = _MAX_LENGTH) -> Manifest:
    """One token a byte, in the order that `stride` makes: another one than 1 is another vocabulary."""
    spec = dataclasses.replace(SPECS["llama"], vocab_size=vocab_size)
    noise = np.random.default_rng(seed)
    weights = {
        name: weight + noise.normal(0, 0.02, weight.shape).astype(weight.dtype)
        for name, weight in random_weights(spec).items()
    }
    write_native_artifact(folder, spec, weights=weights, max_length=max_length)
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

    def edit(self, name: str, before: str, after: str) -> None:
        path = self.path / name
        text = path.read_text()
        assert before in text, f"{name} has no {before!r}"
        path.write_text(text.replace(before, after))

    def serve(self, *arguments: str) -> LocalServer:
        env = {"AUTOGLM_CACHE_MODE": "off", "AUTOGLM_NUM_THREADS": "1"}
        return LocalServer(self.path, http=False, env=env, arguments=arguments)


def load_engine(server: LocalServer) -> None:
    """As whoever runs a server in the mode `explicit` does."""
    client = triton.InferenceServerClient(server.grpc_url)
    client.load_model("engine", headers={"triton-grpc-protocol-autoglm-control-key": server.control_key})
    client.close()


@dataclasses.dataclass
class Asked:
    """What clients got since the last look. Of failures their sentences."""

    answers: list[tuple[Question, str]] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


class Crowd:
    """Clients that ask one question after the other until they are told to stop; most stream."""

    def __init__(self, url: str, num_clients: int = 8) -> None:
        self._client = AsyncClient(url)
        self._stopping = False
        self.asked = Asked()
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(num_clients)]

    async def _ask(self, number: int) -> None:
        draw = random.Random(number)
        while not self._stopping:
            question = draw.choice(QUESTIONS)
            try:
                text = await answer_of(self._client, question, streamed=draw.random() < 0.7)
                self.asked.answers.append((question, text))
            except AutoGLMError as error:
                self.asked.failures.append(f"{type(error).__name__}: {error}")

    def taken(self) -> Asked:
        """What came since the last look."""
        asked, self.asked = self.asked, Asked()
        return asked

    async def more(self, number: int) -> None:
        """Wait for so many more answers."""
        enough = len(self.asked.answers) + number
        await until(lambda: len(self.asked.answers) >= enough)

    async def stop(self) -> Asked:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._client.close()
        return self.asked


async def answer_of(client: AsyncClient, question: Question, *, streamed: bool) -> str:
    prompt, length = question
    options = GenerationOptions(max_tokens=length, ignore_eos=True, temperature=0.0)
    if streamed:
        return (await client.stream(prompt, options).read_all()).text
    return (await client.generate(prompt, options)).text


async def answers_of(url: str) -> Answers:
    """Of whatever is served now."""
    async with AsyncClient(url) as client:
        return {question: await answer_of(client, question, streamed=False) for question in QUESTIONS}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


class Reloads:
    """Replaces one artifact by the other in a repository that is served; knows what each answers."""

    def __init__(self, repository: Repository, server: LocalServer, artifacts: tuple[Path, Path]) -> None:
        self._repository = repository
        self._server = server
        self._artifacts = artifacts
        self._known: list[Answers] = []
        self._served = 0
        self._client = AsyncClient(server.grpc_url)

    async def __aenter__(self) -> Reloads:
        """Knowing what both answer, with nobody else there."""
        await self._learn()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.close()

    async def _learn(self) -> None:
        self._known = [await answers_of(self._server.grpc_url)]
        await self._replace(1)
        first = QUESTIONS[0]
        while await self._answer(first) == self._known[0][first]:
            await asyncio.sleep(0.1)
        self._known.append(await answers_of(self._server.grpc_url))
        assert all(self._known[0][question] != self._known[1][question] for question in QUESTIONS)

    async def once(self) -> None:
        """Until answers are the other's. Who asks from now on gets no other."""
        target, first = 1 - self._served, QUESTIONS[0]
        await self._replace(target)
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while await self._answer(first) != self._known[target][first]:
            assert time.monotonic() < give_up_at, "the new artifact is never served"
            await asyncio.sleep(0.1)

    def tally(self, asked: Asked) -> Counter[str]:
        """How many answers are wholly which artifact's, and how many nobody's; failures by their sentence."""
        found = Counter(asked.failures)
        for question, text in asked.answers:
            owners = [name for name, known in zip(("old", "new"), self._known, strict=True) if known[question] == text]
            found[owners[0] if owners else "mixed"] += 1
        return found

    @property
    def served(self) -> str:
        return ("old", "new")[self._served]

    async def _replace(self, number: int) -> None:
        self._repository.install(self._artifacts[number])
        self._served = number
        if "--model-control-mode=explicit" in self._server._command.arguments:
            await asyncio.to_thread(load_engine, self._server)

    async def _answer(self, question: Question) -> str:
        return await answer_of(self._client, question, streamed=True)


async def check_reloads(reloads: Reloads, crowd: Crowd, times: int) -> Counter[str]:
    """Under load: each answer is wholly one artifact's, none is lost, and after each reload all are the new one's."""
    total = Counter[str]()
    for _ in range(times):
        await crowd.more(10)
        await reloads.once()
        await crowd.more(10)  # those that began before
        total += reloads.tally(crowd.taken())
        await crowd.more(10)
        after = reloads.tally(crowd.taken())
        assert set(after) == {reloads.served}, after
        total += after
    total += reloads.tally(await crowd.stop())
    assert set(total) == {"old", "new"}, total
    return total
