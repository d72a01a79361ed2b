"""An engine over an exported decoder and tower: image files in, transformers' greedy tokens out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Event, ImageSpan, Request, SamplingOptions, Span, StepBatch
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.images.image_bytes import HeldImages
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.tower import Tower
from autoglm_export.export import export

from tests.support.engine.fakes import answers
from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_glm4v import image_file, tiny_tokenizer

pytestmark = pytest.mark.parity

NUM_TOKENS = 10
FILES = [image_file(60, 90, seed=1), image_file(150, 70, seed=2), image_file(90, 90, seed=3)]
PROMPTS: dict[str, list[int | bytes]] = {
    "one": [5, FILES[0], 65, 66],
    "the same, and on": [5, FILES[0], 65, 67, 68],
    "three": [5, 9, FILES[1], 70, FILES[2], FILES[0], 71],
    "text": [72, 73, 74, 75],
    "repeated": [5, FILES[2], *[80, 81, 82, 83] * 5],
}


@dataclass
class Served:
    """An engine's runner, whose steps are remembered, and its tower."""

    folder: Path
    family: SeeingModel

    def __post_init__(self) -> None:
        manifest = Manifest.load(self.folder)
        self.runner: Runner = load_runner(self.folder, manifest, num_threads=1)
        self.tower: Tower = open_tower(self.folder, manifest, num_threads=1)
        self.spans: list[Span] = []

    @property
    def limits(self) -> Any:
        return self.runner.limits

    def issue(self, batch: StepBatch) -> Any:
        # Their ids are a part of the sequence's row, which the engine goes on to write.
        self.spans += [replace(span, token_ids=span.token_ids.copy()) for span in batch.spans]
        return self.runner.issue(batch)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.runner.copy_prefix(source, target, length)

    def close(self) -> None:
        self.runner.close()
        self.tower.close()

    def encode(self, file: bytes, grid: tuple[int, int], number: int) -> Any:
        features = self.tower.encode(preprocess(file, self.tower.settings))
        assert len(features) == grid[0] * grid[1]
        return features

    def grid(self, file: bytes) -> tuple[int, int]:
        rows, columns = preprocess(file, self.tower.settings).grid
        return rows // self.tower.settings.merge_size, columns // self.tower.settings.merge_size

    def request(self, name: str) -> tuple[Request, list[bytes]]:
        ids: list[int] = []
        images: list[ImageSpan] = []
        files = [part for part in PROMPTS[name] if isinstance(part, bytes)]
        for part in PROMPTS[name]:
            if isinstance(part, bytes):
                image = ImageSpan(len(ids) + 1, self.grid(part), hashlib.blake2b(part, digest_size=32).digest())
                images.append(image)
                ids += [self.family.begin, *[self.family.image] * image.num_tokens, self.family.end]
            else:
                ids.append(part)
        held = HeldImages(files) if files else None
        options = SamplingOptions(max_tokens=NUM_TOKENS)
        return Request(name, np.array(ids, np.int32), options, images=tuple(images), image_bytes=held), files

    def answers(self, names: Sequence[str], **settings: Any) -> dict[str, list[int]]:
        """All at once, over slots that hold nothing yet."""
        vision, text = Vision(self.encode, self.tower.settings.hidden_size), TokenText(tiny_tokenizer())
        engine = Engine(self, text, (), plain_settings(**settings), vision=vision)
        for name in names:
            engine.submit(self.request(name)[0])
        events: list[Event] = []
        while engine.has_work:
            events += engine.step()
        engine.shut_down()
        return {name: list(answer.token_ids) for name, answer in answers(events).items()}


def served(family: str, folder: Path, runtime: str, precision: str) -> Iterator[Served]:
    limits = {"max_slots": 3, "max_length": 192, "prefill_chunk": 24}
    SEEING[family].write(folder / "checkpoint")
    export(folder / "checkpoint", folder / "artifact", runtime=runtime, precision=precision, **limits)
    one = Served(folder / "artifact", SEEING[family])
    yield one
    one.close()


@pytest.fixture(scope="module", params=SEEING)
def onnx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(request.param, tmp_path_factory.mktemp("onnx"), "onnx", "fp32")


@pytest.fixture(scope="module", params=SEEING)
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(request.param, tmp_path_factory.mktemp("native"), "native", "int8")


def test_onnx_in_fp32_answers_as_transformers(onnx: Served) -> None:
    family, found = onnx.family, onnx.answers(list(PROMPTS))
    model = family.make()
    for name in PROMPTS:
        request, files = onnx.request(name)
        assert found[name] == family.greedy(model, request.prompt_ids.tolist(), files, NUM_TOKENS), name
    assert any((span.token_ids < 0).any() and span.start for span in onnx.spans), "an image was cut"


def test_native_answers_alone_together_and_with_drafts_are_one(native: Served) -> None:
    alone = {name: native.answers([name])[name] for name in PROMPTS}
    assert native.answers(list(PROMPTS)) == alone
    assert native.answers(list(PROMPTS), token_budget=7, prefix_reuse=False) == alone
    native.spans.clear()
    assert native.answers(list(PROMPTS), speculation="on") == alone
    drafted = [span for span in native.spans if span.num_drafts and span.positions is not None]
    assert drafted and all((span.token_ids >= 0).all() for span in drafted)
