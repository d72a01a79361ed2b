"""The engine over real runners, with an artifact's own tower: transformers' greedy tokens, whatever comes together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.core import Event, Features, ImageSpan, Request, SamplingOptions
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.images.image_bytes import HeldImages
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.vision.digest import image_digest
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.tower import Tower
from autoglm_export.export import export

from tests.support.engine.fakes import answers
from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_glm4v import IDS, image_file

pytestmark = pytest.mark.parity

FILES = [image_file(60, 90, seed=1), image_file(150, 70, seed=2), image_file(60, 90, seed=3)]
NUM_TOKENS = 8


@dataclass(frozen=True)
class Served:
    """An artifact, opened once; each test has an engine of its own."""

    runner: Runner
    tower: Tower
    text: TokenText
    family: SeeingModel

    def encode(self, file: bytes, grid: tuple[int, int], number: int) -> Features:
        return self.tower.encode(preprocess(file, self.tower.settings))

    def request(self, name: str, parts: Sequence[int | bytes]) -> Request:
        ids: list[int] = []
        images: list[ImageSpan] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
                continue
            rows, columns = (
                side // self.tower.settings.merge_size for side in preprocess(part, self.tower.settings).grid
            )
            images.append(ImageSpan(len(ids) + 1, (rows, columns), image_digest(part, self.tower.settings)))
            ids += [self.family.begin, *[self.family.image] * (rows * columns), self.family.end]
        sampling = SamplingOptions(max_tokens=NUM_TOKENS, ignore_eos=True)
        files = HeldImages([part for part in parts if isinstance(part, bytes)])
        return Request(name, np.array(ids, np.int32), sampling, images=tuple(images), image_bytes=files)

    def run(self, *waves: Sequence[Request], **settings: object) -> dict[str, list[int]]:
        """Each wave once the one before has ended."""
        vision = Vision(self.encode, self.tower.settings.hidden_size)
        engine = Engine(self.runner, self.text, (), plain_settings(**settings), vision=vision)
        events: list[Event] = []
        for wave in waves:
            for request in wave:
                engine.submit(request)
            while engine.has_work:
                events += engine.step()
        engine.shut_down()
        found = answers(events)
        assert all(answer.last.error is None for answer in found.values())
        return {name: answer.token_ids for name, answer in found.items()}


def served(family: str, made: Path, runtime: str, precision: str) -> Iterator[Served]:
    limits, folder = {"max_slots": 3, "max_length": 128, "prefill_chunk": 64}, made / "artifact"
    SEEING[family].write(made / "checkpoint")
    manifest = export(made / "checkpoint", folder, runtime=runtime, precision=precision, **limits)
    runner = load_runner(folder, manifest, num_threads=1)
    tower = open_tower(folder, Manifest.load(folder), num_threads=1)
    yield Served(runner, tower, TokenText(load_tokenizer(folder)), SEEING[family])
    tower.close()
    runner.close()


@pytest.fixture(scope="module", params=SEEING)
def onnx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(request.param, tmp_path_factory.mktemp("onnx"), "onnx", "fp32")


@pytest.fixture(scope="module", params=SEEING)
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(request.param, tmp_path_factory.mktemp("native"), "native", "int8")


ASSISTANT = IDS["<|assistant|>"]
PROMPTS: list[list[int | bytes]] = [
    [5, 9, FILES[0], 65, 66, FILES[1], 67, ASSISTANT],
    [5, 9, FILES[2], 65, 66, FILES[1], 67, ASSISTANT],
    [5, 9, FILES[0], 65, 66, 65, 66, ASSISTANT],
    [FILES[1], ASSISTANT],
]


def test_the_engine_gives_transformers_greedy_tokens(onnx: Served) -> None:
    model, found = (
        onnx.family.make(),
        onnx.run([onnx.request(f"r{place}", parts) for place, parts in enumerate(PROMPTS)]),
    )
    for place, parts in enumerate(PROMPTS):
        ids = onnx.request("", parts).prompt_ids.tolist()
        files = [part for part in parts if isinstance(part, bytes)]
        expected = onnx.family.logits(model, ids, files, NUM_TOKENS)
        assert found[f"r{place}"] == [int(row.argmax()) for row in expected]


@pytest.mark.parametrize("budget", [3, 20, 256])
def test_company_chunks_reuse_and_drafts_change_no_token(native: Served, budget: int) -> None:
    """To the bit: the native runtime computes a token alike however its sequence is cut."""
    alone = {
        place: native.run([native.request("r", parts)], prefix_reuse=False)["r"] for place, parts in enumerate(PROMPTS)
    }

    def wave(name: str) -> list[Request]:
        return [native.request(f"{name}{place}", parts) for place, parts in enumerate(PROMPTS)]

    for speculation in ("off", "on"):
        found = native.run(wave("a"), wave("b"), token_budget=budget, speculation=speculation)
        assert found == {f"{name}{place}": alone[place] for name in "ab" for place in alone}
