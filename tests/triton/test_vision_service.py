"""The vision model without Triton: who may ask, what is given up, and that everybody is answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Features
from autoglm_engine.errors import DeviceError, InvalidRequest
from autoglm_engine.messages import Packed
from autoglm_engine.triton.board.acks import AckBoard
from autoglm_engine.triton.board.finder import ImageBoards
from autoglm_engine.triton.board.seal import Kind
from autoglm_engine.triton.board.server_identity import ServerIdentity
from autoglm_engine.triton.images import vision_model
from autoglm_engine.triton.images.encode_message import EncodeMessage
from autoglm_engine.triton.images.image_intake import STAGES
from autoglm_engine.triton.images.vision_model import EncodedImage, Encoder, VisionService
from autoglm_engine.vision.processor import Patches
from autoglm_engine.vision.stop import Stop

from tests.support.export.tiny_glm4v import image_file
from tests.support.vision.settings import vision_settings

IMAGE = np.frombuffer(image_file(56, 84), np.uint8)
ARTIFACT = "0123456789abcdef"
MEMORY = "/proc/1/fd/1"  # nothing is written there


class FakeTower:
    """Makes the number of patches; an image of 4 x 4 patches until `free`, or until it is given up."""

    def __init__(self) -> None:
        self.settings = vision_settings()
        self.began, self.free = threading.Event(), threading.Event()
        self.num_given_up = 0

    def encode(self, patches: Patches, stop: Stop | None = None) -> Features:
        assert stop is not None
        if patches.grid == (4, 4):
            self.wait(stop)
        return np.full((len(patches.values) // 4, 8), len(patches.values), np.float32)

    def wait(self, stop: Stop) -> None:
        ended = threading.Event()
        with stop.ended_by(ended.set):
            self.began.set()
            while not self.free.is_set() and not ended.wait(0.005):
                pass
        self.num_given_up += ended.is_set()
        stop.check()


class FakeReply:
    """`no_room`: how often sending features fails before it succeeds."""

    def __init__(self, no_room: int = 0) -> None:
        self.answered = threading.Event()
        self.features: Features | None = None
        self.seconds = list[float]()
        self.failure = ""
        self.no_room = no_room

    def send(self, encoded: EncodedImage) -> None:
        if self.no_room:
            self.no_room -= 1
            raise RuntimeError("no room")
        self.features, self.seconds = encoded.features, encoded.seconds.tolist()
        self.answered.set()

    def fail(self, code: str, message: str) -> None:
        self.failure = f"{code}: {message}"
        self.answered.set()

    def said(self) -> str:
        assert self.answered.wait(20), "nobody answers"
        return self.failure


class Service:
    def __init__(self, folder: Path, board: AckBoard, server: ServerIdentity) -> None:
        self.board, self.tower = board, FakeTower()
        self.has_ended = threading.Event()
        self.made = VisionService(folder, 1, ImageBoards(server, folder), end=self.has_ended.set)
        self.made._encoders = SimpleNamespace(  # type: ignore[assignment]
            read=lambda: None, of=lambda artifact: self.tower and Encoder(self.tower), close=lambda: None
        )
        self.made.start()

    def ask(self, number: int, file: bytes = IMAGE.tobytes(), reply: FakeReply | None = None) -> FakeReply:
        image, reply = np.frombuffer(file, np.uint8), reply or FakeReply()
        rows, columns = (2, 2) if len(file) == len(HELD) else (2, 3)
        message = EncodeMessage(number, rows, columns, ARTIFACT, MEMORY).packed()
        self.take(image, self.board.seal.close(Kind.IMAGE, message, beside=image), reply)
        return reply

    def take(self, image: Packed, sealed: Packed, reply: FakeReply) -> None:
        self.made.take({"image": image[np.newaxis], "request": sealed[np.newaxis]}, reply)


HELD = image_file(56, 56)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    server = ServerIdentity.of(os.getpid())
    with AckBoard(4, tmp_path, server) as board:
        made = Service(tmp_path, board, server)
        yield made
        made.tower.free.set()
        made.made.close()


def test_what_the_engine_asks_is_encoded(service: Service) -> None:
    reply = service.ask(1)
    assert not reply.said() and reply.features is not None
    np.testing.assert_array_equal(reply.features, np.full((6, 8), 24, np.float32))
    assert len(reply.seconds) == len(STAGES)


def forgeries(service: Service) -> dict[str, tuple[Packed, Packed]]:
    message = EncodeMessage(1, 2, 3, ARTIFACT, MEMORY).packed()
    sealed = service.board.seal.close(Kind.IMAGE, message, beside=IMAGE)
    return {
        "unsealed": (IMAGE, message),
        "another image": (IMAGE[::-1].copy(), sealed),
        "another kind": (IMAGE, service.board.seal.close(Kind.REQUEST, message, beside=IMAGE)),
        "empty": (IMAGE, message[:0]),
        "another board": (IMAGE, np.concatenate([sealed[1:9], sealed[8:]])),
    }


@pytest.mark.parametrize("what", ["unsealed", "another image", "another kind", "empty", "another board"])
def test_strangers_are_refused_at_once_also_while_an_image_is_encoded(service: Service, what: str) -> None:
    held = service.ask(1, HELD)
    assert service.tower.began.wait(20)
    replies = [FakeReply() for _ in range(100)]
    for reply in replies:
        service.take(*forgeries(service)[what], reply)
    assert all(
        reply.answered.is_set() and reply.failure.startswith("INVALID_ARG: image has no valid seal")
        for reply in replies
    )
    service.tower.free.set()
    assert not held.said()


def test_what_lacks_a_tensor_is_answered(service: Service) -> None:
    reply = FakeReply()
    service.made.take({"image": IMAGE}, reply)
    assert reply.said() == "INTERNAL: the vision model failed: KeyError"


def test_an_image_that_is_given_up_ends_and_the_next_one_is_not_disturbed(service: Service) -> None:
    held, after = service.ask(1, HELD), service.ask(2)
    assert service.tower.began.wait(20)
    service.board.give_up_images(1)
    assert held.said() == "UNAVAILABLE: nobody wants this image any more"
    assert not after.said() and after.features is not None
    assert service.tower.num_given_up == 1


def test_an_image_that_was_given_up_before_its_turn_is_not_even_decoded(service: Service) -> None:
    held = service.ask(1, HELD)
    assert service.tower.began.wait(20)
    waiting = service.ask(2, b"no image at all")
    service.board.give_up_images(2)
    assert [held.said(), waiting.said()] == ["UNAVAILABLE: nobody wants this image any more"] * 2


def test_an_engine_that_ends_wants_nothing_more(tmp_path: Path) -> None:
    server = ServerIdentity.of(os.getpid())
    with AckBoard(4, tmp_path, server) as board:
        made = Service(tmp_path, board, server)
        held = made.ask(1, HELD)
        assert made.tower.began.wait(20)
    assert held.said().startswith("UNAVAILABLE")
    made.made.close()


def test_unloading_ends_what_is_encoded_and_answers_those_who_wait(service: Service) -> None:
    replies = [service.ask(number, HELD) for number in (1, 2, 3)]
    assert service.tower.began.wait(20)
    service.made.close()
    assert {reply.said() for reply in replies} == {"UNAVAILABLE: the vision model is shutting down; try again later"}


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), InvalidRequest("no")])
def test_whatever_an_encode_raises_the_next_one_is_encoded(service: Service, error: BaseException) -> None:
    def raises(patches: Any, stop: Any) -> Features:
        raise error

    encode: Callable[..., Features] = service.tower.encode
    service.tower.encode = raises  # type: ignore[method-assign]
    told = "INVALID_ARG: no" if isinstance(error, InvalidRequest) else "INTERNAL: the vision model failed: "
    assert service.ask(1).said().startswith(told)
    service.tower.encode = encode  # type: ignore[method-assign]
    assert not service.ask(2).said()


def test_a_gpu_that_failed_ends_the_process_behind_the_answer(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(patches: Patches, stop: Stop | None = None) -> Features:
        raise DeviceError("the GPU is lost")

    assert not service.ask(1).said()
    assert service.ask(2, b"no image").said() and not service.has_ended.is_set()
    monkeypatch.setattr(service.tower, "encode", fails)
    assert service.ask(3).said() == "INTERNAL: the GPU is lost"
    assert service.has_ended.wait(20)


def test_features_wait_for_room(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not service.ask(1, reply=FakeReply(no_room=3)).said()
    monkeypatch.setattr(vision_model, "_SEND_SECONDS", 0.01)
    said = service.ask(2, reply=FakeReply(no_room=10**9)).said()
    assert said.startswith("UNAVAILABLE: shared memory has had no room for the features")


def test_a_grid_that_the_image_cannot_become_is_refused(service: Service) -> None:
    image = np.frombuffer(image_file(56, 56, seed=3) + b"longer", np.uint8)
    message = EncodeMessage(1, 1, 9, ARTIFACT, MEMORY).packed()
    reply = FakeReply()
    service.take(image, service.board.seal.close(Kind.IMAGE, message, beside=image), reply)
    assert reply.said() == "INVALID_ARG: an image has 2 x 2 tokens once it is decoded, and its header said 1 x 9"


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'["1", 2, 3, "a"]', b"[0, 2, 3, 5]", b"[1, 2, 3]"])
def test_a_message_is_held_to_its_types(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        EncodeMessage.unpacked(np.frombuffer(raw, np.uint8))


def test_a_message_is_read_as_it_was_written() -> None:
    message = EncodeMessage(7, 2, 3, ARTIFACT, MEMORY)
    assert EncodeMessage.unpacked(message.packed()) == message
