"""The whole engine model without Triton, over a fake runner: for tests of what a call, a cancel and an end do to it."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Event, Request, StepBatch
from autoglm_engine.manifest import CacheShape, FileRecord, Manifest
from autoglm_engine.messages import Packed, pack_request, unpack_event
from autoglm_engine.runners.base import Limits, Runner
from autoglm_engine.settings.model import EngineSettings, plain_settings
from autoglm_engine.triton import loaded_model
from autoglm_engine.triton.board.seal import SEAL_BYTES, Kind
from autoglm_engine.triton.engine_model import EngineService
from autoglm_engine.triton.metrics_publisher import PublishedMetrics

from tests.support.engine.busy_engine import no_series
from tests.support.engine.engine_bench import END, LETTERS, VOCAB
from tests.support.engine.fakes import FakeRunner

PATIENCE = 120.0  # seconds; nothing here takes one


class KeptReply:
    """A caller's response sender that keeps what it was sent."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failure: tuple[str, str] | None = None
        self.raw: list[bytes] = []
        self.ended = threading.Event()

    def send(self, packed: Packed, *, last: bool) -> None:
        self.raw.append(packed.tobytes())
        content = packed[SEAL_BYTES:]
        if content.tobytes().startswith(b'{"id"'):
            self.events.append(unpack_event(content)[0])
        if last:
            self.ended.set()

    def fail(self, code: str, message: str) -> None:
        self.failure = (code, message)
        self.ended.set()

    def wait(self) -> Event | tuple[str, str]:
        """Its last event, or how it was refused."""
        assert self.ended.wait(PATIENCE), "no answer came"
        return self.failure or self.events[-1]


def write_artifact(folder: Path) -> Manifest:
    """A tokenizer and a manifest; the runner is the test's."""
    folder.mkdir(parents=True, exist_ok=True)
    LETTERS.save(str(folder / "tokenizer.json"))
    manifest = Manifest(
        model_name="letters",
        family="llama",
        runtime="native",
        runtime_version="1",
        precision="fp32",
        num_slots=4,
        max_length=64,
        prefill_chunk=8,
        vocab_size=VOCAB,
        cache=CacheShape(1, 1, 8, "float32"),
        eos_token_ids=(END,),
        bos_token_id=None,
        generation_defaults={},
        spec={},
        files={"tokenizer.json": FileRecord.of(folder / "tokenizer.json")},
    )
    manifest.save(folder)
    return manifest


class LongStep(FakeRunner):
    """The first step of requests takes until it is let go. Knows whether its memory went while it computed."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.is_armed = False
        self.computes = threading.Event()
        self.may_end = threading.Event()
        self.is_computing = False
        self.closed_while_computing: list[bool] = []

    def forward(self, batch: StepBatch):  # type: ignore[no-untyped-def]
        if self.is_armed:
            self.is_computing = True
            self.computes.set()
            assert self.may_end.wait(PATIENCE)
        try:
            return super().forward(batch)
        finally:
            self.is_computing = False

    def close(self) -> None:
        self.closed_while_computing.append(self.is_computing)


def no_image(file: bytes, grid: tuple[int, int], artifact: str) -> Any:
    raise AssertionError("an image for a model of text")


@contextmanager
def serving(
    folder: Path, runner: Runner, settings: EngineSettings | None = None, **options: Any
) -> Iterator[EngineService]:
    write_artifact(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded_model, "load_runner", lambda *args, **rest: runner)
        made = EngineService(
            folder,
            settings or plain_settings(),
            num_threads=1,
            **{
                "metrics": PublishedMetrics(no_series),
                "ask": lambda packed: None,
                "embed": lambda text: np.zeros(4, np.float32),
                "embedder": folder / "none",
                "encode": no_image,
                "died": lambda: None,
                **options,
            },
        )
    made.start()
    try:
        yield made
    finally:
        made.close()


def submit(service: EngineService, request: Request) -> KeptReply:
    reply = KeptReply()
    packed = pack_request(dataclasses.replace(request, guide=None), service._board.artifact)
    sealed = service._board.seal.close(Kind.REQUEST, packed, beside=request.prompt_ids)
    service.submit(request.id, request.prompt_ids, sealed, reply)
    return reply


def control(service: EngineService, **asked: object) -> dict[str, Any]:
    reply = KeptReply()
    service.control(json.dumps(asked).encode(), reply)
    found: dict[str, Any] = json.loads(reply.raw[0])
    return found


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never came to that")
