"""The engine model without Triton: takes what a call brings, answers through `Reply`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from autoglm_engine.cache.answer_digest import answer_digest
from autoglm_engine.cache.opening import open_caches
from autoglm_engine.cache.semantic.cache import Embed
from autoglm_engine.cache.semantic.verifier import SemanticChecks
from autoglm_engine.cache.shared_request import SharedRequestGate
from autoglm_engine.core import Event, Request, TokenIds
from autoglm_engine.engine.background import BackgroundRuns
from autoglm_engine.engine.loop import EngineLoop
from autoglm_engine.engine.step_watch import StepWatch
from autoglm_engine.errors import DeviceError, EngineError, InvalidRequest, ShuttingDown
from autoglm_engine.messages import Packed, split_files, unpack_request
from autoglm_engine.options.options import check_tenant
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.triton.board.acks import AckBoard, AckGate, cells_for
from autoglm_engine.triton.board.disconnects import DisconnectWatch
from autoglm_engine.triton.board.finder import RequestBoards
from autoglm_engine.triton.board.server_identity import ServerIdentity

from .control import Control
from .detokenizer_model import piece_text
from .forwarded_cancels import ForwardedCancels
from .images.image_intake import EncodeImage, ImageIntake
from .loaded_model import LoadedModel
from .metrics_publisher import PublishedMetrics
from .responses import Replies, Reply

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 1.0  # for a step to end by itself
_LAST_STEP_SECONDS = 2.0  # more for one that is longer, with everybody answered: so the process ends in better order


class EngineService:
    """`metrics` is started and closed with the service; `ask` has the detokenizer handle an event and blocks; `embed`
    asks the model whose artifact is in `embedder`, and blocks; `encode` has the vision model make features of an image,
    and blocks; `died` is called when no step can be computed any more, after every request was answered. `identity`:
    whose engine this is; None is the only one of this process's server. `max_kept`: as `CachingEngine`'s."""

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings,
        *,
        num_threads: int,
        metrics: PublishedMetrics,
        ask: Callable[[Packed], object],
        embed: Embed,
        embedder: Path | None,
        encode: EncodeImage,
        died: Callable[[], object],
        identity: ServerIdentity | None = None,
        max_kept: int | None = None,
    ) -> None:
        model = LoadedModel.load(folder, settings, num_threads)
        self._rules, self._guides, self._runner = model.rules, model.guides, model.runner
        self._default_deadline_ms = settings.default_deadline_ms
        self._died, self._metrics = died, metrics
        server = identity or ServerIdentity.of_parent()
        num_cells = cells_for(model.manifest.num_slots, settings.max_queue)
        self._board = AckBoard(num_cells, server=server, artifact=model.manifest.short_digest)
        with self._board.ended_by_failure():
            self._requests = RequestBoards(self._board, server)
            self._images = ImageIntake.of(model.manifest, settings, self._board, encode, metrics)
            gate = AckGate(self._board)
            shared = SharedRequestGate(gate)
            self._caches = open_caches(
                model.engine(settings, shared, metrics, self._images.vision),
                model.text,
                answer_digest(model.manifest),
                settings,
                shared,
                metrics,
                embed=embed,
                embedder=embedder,
                max_kept=max_kept,
            )
            self._engine = self._caches.engine
            self._replies = Replies(gate)
            self._loop = EngineLoop(self._engine, self._deliver, died)
            self._engine.wake = self._guides.wake = self._images.wake = self._loop.wake
            self._background = BackgroundRuns(self._loop.submit, self._loop.cancel, lambda: self._engine.stats)
            self._check_semantic_hits(model.text, embed, settings)
            max_seconds = settings.seconds_of_step(self._runner.limits.on_gpu)
            self._step_watch = StepWatch(lambda: self._loop.seconds_of_step, max_seconds, self._end_hung)
            passed = ForwardedCancels(self._board, self._replies, self._loop.cancel)
            self._watch = DisconnectWatch(gate, self._loop.cancel, ask, passed.look)
            self._control = Control(model.limits, self._caches, self._cancel, self._checked_health)

    def _check_semantic_hits(self, text: TokenText, embed: Embed, settings: EngineSettings) -> None:
        if semantic := self._caches.semantic:
            semantic.checks = SemanticChecks(
                self._background.compute,
                lambda event: piece_text(text, event),
                embed,
                semantic.switch_off,
                settings,
                self._metrics,
            )

    def start(self) -> None:
        with self._board.ended_by_failure():
            self._loop.start()
            self._watch.start()
            self._step_watch.start()
            self._metrics.start()

    def close(self) -> None:
        """Answer every request, then let go of everything: of the runner's memory when the step that runs has ended,
        which nothing can hasten."""
        self._step_watch.close(_CLOSE_SECONDS)
        if not self._loop.close(_CLOSE_SECONDS):
            self._replies.end_all(ShuttingDown("the server is shutting down"), _CLOSE_SECONDS)
        self._board.close()  # early: whoever ends the process meanwhile finds nothing left behind
        self._loop.after_steps(self._runner.close)
        self._guides.close()
        self._engine.close()
        self._watch.close(_CLOSE_SECONDS)
        self._metrics.close(_CLOSE_SECONDS)
        self._loop.close(_LAST_STEP_SECONDS)

    def abandon(self) -> None:
        """The process is about to end, with everybody answered: whoever watches it need not wait for that."""
        self._board.abandon()

    @property
    def healthy(self) -> bool:
        """Whether steps are computed."""
        return self._loop.healthy and self._step_watch.failure is None

    def _end_hung(self, failure: DeviceError) -> None:
        """The thread that steps never comes back: others answer in its place."""
        _log.critical("%s", failure)
        self._engine.refuse(failure)
        self._replies.end_all(failure, _CLOSE_SECONDS)
        self._died()

    def _deliver(self, event: Event) -> None:
        if not self._background.take(event):
            self._replies(event)

    def submit(self, caller_id: str, token_ids: TokenIds, packed: Packed, reply: Reply) -> None:
        """Take a request, or answer it with an error at once."""
        request_id = self._replies.open(caller_id, reply)
        try:
            sealed, files = split_files(packed)
            opened = self._requests.open(sealed, token_ids)
            self._requests.note_asked()
            request = unpack_request(request_id, token_ids, opened, self._board.artifact)
            if request.prompt_thinks:
                self._replies.note_thinking(request_id)
            self._rules.recheck(request.sampling)
            self._rules.recheck_prompt_lookup(request.prompt_lookup)
            check_tenant(request.tenant)
            request = dataclasses.replace(request, guide=self._guides.guide_of(request.sampling, request.tenant))
            if request.semantic and self._caches.semantic is None:
                raise InvalidRequest(f"semantic is true, which cannot be done here: {self._caches.no_semantic}")
            self._loop.submit(self._images.take(self._with_deadline(request), [file.tobytes() for file in files]))
        except EngineError as error:
            self._replies.refuse(request_id, error.code, str(error))
            return
        except Exception as error:
            _log.exception("a request could not be taken", extra={"request_id": request_id})
            self._replies.refuse(request_id, "INTERNAL", f"the engine failed on this request: {type(error).__name__}")
            return
        if self._replies.was_cancelled(caller_id, request.arrival):
            self._loop.cancel([request_id])

    def _with_deadline(self, request: Request) -> Request:
        if request.deadline is not None or not self._default_deadline_ms:
            return request
        return dataclasses.replace(request, deadline=request.arrival + self._default_deadline_ms / 1e3)

    def control(self, text: bytes, reply: Reply) -> None:
        """As `Control.answer`."""
        self._control.answer(text, reply)

    def _cancel(self, caller_ids: Sequence[str]) -> int:
        is_passed = self._requests.forward_cancels(caller_ids)
        return self._loop.cancel(self._replies.find(caller_ids, may_be_elsewhere=is_passed))

    def _checked_health(self) -> bool:
        """Raises DeviceError where a step hangs."""
        self._step_watch.check()
        return self.healthy
