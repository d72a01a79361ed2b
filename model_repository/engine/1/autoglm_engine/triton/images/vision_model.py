"""The vision model without Triton: an image file in, the rows of the decoder's width that stand for it out.

Requests are read where they come, so that nobody's fill a queue: what the engine of this server did not seal is refused
at once. Images are encoded on a thread of their own, one after the other, for one fills the cores by itself. What the
engine gives up meanwhile is ended.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import DeviceError, EngineError, InvalidRequest, ShuttingDown, Unavailable
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.onnx.device import AUTO
from autoglm_engine.runners.pixel_library import open_pixel_library
from autoglm_engine.runners.towers import files_of_tower, open_tower
from autoglm_engine.triton.board.finder import ImageBoards
from autoglm_engine.triton.followed_artifact import FollowedArtifact
from autoglm_engine.vision.compiled import PixelLibrary
from autoglm_engine.vision.processor import decoded, patches_of
from autoglm_engine.vision.resize import Grid
from autoglm_engine.vision.stop import Stop
from autoglm_engine.vision.tower import Features, Tower

from .encode_message import EncodeMessage

_log = logging.getLogger(__name__)
_ENDING: Final = ShuttingDown("the vision model is shutting down; try again later")
_LOOK_SECONDS = 0.01  # between two looks whether an image is still wanted
_CLOSE_SECONDS = 2.0
_SEND_SECONDS, _SEND_PAUSE = 5.0, 0.005


@dataclass(frozen=True, slots=True)
class Encoder:
    """Of an artifact. `library`: what reads images; None: Pillow."""

    tower: Tower
    library: PixelLibrary | None = None


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """`features`: float32 [rows * columns, hidden_size]. `seconds`: of decoding the file, of resizing and cutting, of
    the tower, float32 [3]. `memory`: of the engine, which takes them."""

    features: Features
    seconds: npt.NDArray[np.float32]
    memory: str = ""


class VisionReply(Protocol):
    """One request's response sender. One of the two is called, once, on any thread; what raised may be tried again."""

    def send(self, encoded: EncodedImage) -> None: ...

    def fail(self, code: str, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Job:
    image: bytes
    message: EncodeMessage
    is_wanted: Callable[[int], bool]
    reply: VisionReply


class VisionService:
    """`folder`: of the artifact, which may have no tower: then whoever asks is refused. `device`: as of `open_tower`.
    `end`: called behind the answer that tells of a GPU that failed, which this process can no longer use."""

    def __init__(
        self,
        folder: Path,
        num_threads: int,
        boards: ImageBoards,
        *,
        device: str = AUTO,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        load = partial(_load, num_threads=num_threads, device=device)
        self._end = end
        self._encoders = FollowedArtifact[Encoder | None](folder, load, most=1, let_go=_close)
        self._boards = boards
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="image-encode", daemon=True)

    def start(self) -> None:
        """As `FollowedArtifact.read`."""
        self._encoders.read()
        self._thread.start()

    def take(self, tensors: Mapping[str, npt.NDArray[Any]], reply: VisionReply) -> None:
        """The one thread that brings requests. Answers, now or later."""
        try:
            image, sealed = (tensors[name].reshape(-1) for name in ("image", "request"))
            file = image.tobytes()  # what is looked at is what is encoded
            packed, is_wanted = self._boards.open(sealed, np.frombuffer(file, np.uint8))
            self._jobs.put(_Job(file, EncodeMessage.unpacked(packed), is_wanted, reply))
        except Exception as error:  # one request never takes its batch with it
            _hand_on(partial(_fail, reply, error), reply)

    def close(self) -> None:
        """Everybody who waits is answered."""
        self._is_closing = True
        self._jobs.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._encoders.close()

    # ---- the thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            has_failed = False
            try:
                send = partial(job.reply.send, self._encode(job))
            except BaseException as error:  # whatever it was, the next one is encoded
                send = partial(_fail, job.reply, _ENDING if self._is_closing else error)
                has_failed = isinstance(error, DeviceError)
            _hand_on(send, job.reply)
            if has_failed:
                self._end()
            del job, send

    def _encode(self, job: _Job) -> EncodedImage:
        stop = Stop()
        with self._watched(job, stop):
            encoder = self._encoders.of(job.message.artifact)
            if encoder is None:
                raise InvalidRequest("the model that is served reads text only: its artifact has no vision tower")
            made = encode_image(job.image, (job.message.rows, job.message.columns), encoder, stop)
            return replace(made, memory=job.message.memory)

    @contextmanager
    def _watched(self, job: _Job, stop: Stop) -> Iterator[None]:
        """Ask `stop` for the end once the engine gives the image up, or this model is unloaded. Raises what that is."""
        self._look(job, stop)
        stop.check()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_LOOK_SECONDS):
                self._look(job, stop)

        thread = threading.Thread(target=watch, name="image-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _look(self, job: _Job, stop: Stop) -> None:
        if self._is_closing or not job.is_wanted(job.message.number):
            stop.ask()


def _fail(reply: VisionReply, error: BaseException) -> None:
    if not isinstance(error, EngineError):
        _log.error("an image could not be encoded", exc_info=error)
        error = EngineError(f"the vision model failed: {type(error).__name__}")
    reply.fail(error.code, str(error))


def _hand_on(send: Callable[[], object], reply: VisionReply) -> None:
    """Or the sentence that says why not, which is short: without any answer the engine would wait for ever."""
    if not _keep_sending(send):
        sentence = "shared memory has had no room for the features of an image for some seconds; try again later"
        _keep_sending(partial(reply.fail, Unavailable.code, sentence))


def _keep_sending(send: Callable[[], object]) -> bool:
    """Again and again for a while: what others send may have filled the shared memory just now."""
    give_up_at = time.monotonic() + _SEND_SECONDS
    while True:
        try:
            send()
            return True
        except Exception as error:
            if time.monotonic() >= give_up_at:
                _log.error("an answer was not sent", exc_info=error)
                return False
        time.sleep(_SEND_PAUSE)


def encode_image(
    image: bytes, tokens: Grid, encoder: Encoder, stop: Stop | None = None, clock: Callable[[], float] = time.monotonic
) -> EncodedImage:
    """`tokens`: the rows and columns of tokens to make of it. Raises InvalidRequest, and GivenUp once `stop` was asked
    for."""
    times = [clock()]
    picture = decoded(image, stop, encoder.library)
    times.append(clock())
    patches = patches_of(picture, encoder.tower.settings, tokens, stop)
    times.append(clock())
    features = encoder.tower.encode(patches, stop)
    times.append(clock())
    if not np.isfinite(features).all():
        raise InvalidRequest("the vision tower makes numbers of this image that are not finite")
    return EncodedImage(features, np.diff(times).astype(np.float32))


def _load(folder: Path, manifest: Manifest, num_threads: int, device: str) -> Encoder | None:
    if manifest.vision is None:
        return None
    manifest.verify_files(folder, files_of_tower(manifest, manifest.vision), digests=True)
    library = open_pixel_library(folder, manifest)
    return Encoder(open_tower(folder, manifest, num_threads=num_threads, device=device), library)


def _close(encoder: Encoder | None) -> None:
    if encoder is not None:
        encoder.tower.close()
