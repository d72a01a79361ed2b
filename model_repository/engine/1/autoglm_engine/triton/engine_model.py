"""The engine model without Triton: takes what a call brings, answers through `Reply`."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from autoglm_engine.cache.answer_digest import answer_digest
from autoglm_engine.cache.coalescing import CachingEngine
from autoglm_engine.cache.flight_gate import FlightGate
from autoglm_engine.cache.redis.loading import load_redis_tier
from autoglm_engine.cache.semantic.cache import Embed
from autoglm_engine.cache.semantic.loading import open_semantic
from autoglm_engine.cache.semantic.verifier import SemanticChecks
from autoglm_engine.cache.tiers import Tier
from autoglm_engine.core import Event, Request, Span, StepBatch, TokenIds
from autoglm_engine.engine.background import BackgroundRuns
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.loop import EngineLoop
from autoglm_engine.engine.speculation.drafter import FIXED_ROWS
from autoglm_engine.engine.speculation.step_cost import measure_fixed_rows
from autoglm_engine.engine.step_watch import StepWatch
from autoglm_engine.errors import DeviceError, EngineError, InvalidRequest, ShuttingDown
from autoglm_engine.guided.grammar import Guides
from autoglm_engine.guided.pool import GuidePool
from autoglm_engine.manifest import Manifest
from autoglm_engine.messages import Packed, unpack_request
from autoglm_engine.options.options import OptionRules, check_tenant
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.tokenizer.prompt import ChatTemplate, load_tokenizer, verify_texts
from autoglm_engine.tokenizer.tool_format import UNKNOWN, call_tokens
from autoglm_engine.triton.board.acks import AckBoard, AckGate, cells_for
from autoglm_engine.triton.board.disconnects import VanishedWatch
from autoglm_engine.triton.board.finder import RequestBoards
from autoglm_engine.triton.board.server_identity import ServerIdentity

from .detokenizer_model import piece_text
from .metrics_publisher import PublishedMetrics
from .passed_cancels import PassedCancels
from .responses import Replies, Reply

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 1.0  # for a step to end by itself
_LAST_STEP_SECONDS = (
    2.0  # more for one that is longer, with everybody answered: the process ends in better order after it
)


class EngineService:
    """`metrics` is started and closed with the service; `ask` has the detokenizer handle an event and blocks; `embed`
    asks the model whose artifact is in `embedder`, and blocks; `died` is called when no step can be computed any more,
    after every request was answered. `identity`: whose engine this is; None is the only one of this process's server.
    `most_kept`: as `CachingEngine`'s."""

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
        died: Callable[[], object],
        identity: ServerIdentity | None = None,
        most_kept: int | None = None,
    ) -> None:
        manifest = Manifest.load(folder)
        self._rules = OptionRules.of(manifest)
        self._limits: dict[str, object] = {
            "max_length": manifest.max_length,
            "vocab_size": manifest.vocab_size,
            "num_slots": settings.num_slots(manifest.num_slots),  # refused before the weights are read
        }
        self._default_deadline_ms = settings.default_deadline_ms
        verify_texts(folder, manifest)
        tokenizer = load_tokenizer(folder)
        template = ChatTemplate.load(folder, tokenizer, manifest)
        self._limits["tool_format"] = template.tool_format if template else UNKNOWN
        self._limits["call_tokens"] = call_tokens(tokenizer)
        text = TokenText(tokenizer)
        self._guides = GuidePool(Guides.of(folder, manifest.vocab_size, manifest.eos_token_ids))
        self._runner = load_runner(
            folder,
            manifest,
            num_threads=num_threads,
            num_slots=settings.num_slots(manifest.num_slots),
            device=settings.device,
        )
        manifest.check_unchanged(folder)
        warm_up(self._runner)
        server = identity or ServerIdentity.of_parent()
        num_cells = cells_for(manifest.num_slots, settings.max_queue)
        self._board = AckBoard(num_cells, server=server, artifact=manifest.short_digest)
        with self._board.ended_by_failure():
            self._requests = RequestBoards(self._board, server)
            gate = AckGate(self._board)
            shared = FlightGate(gate)
            fixed_rows = measure_fixed_rows(self._runner) if self._runner.limits.can_verify_drafts else FIXED_ROWS
            engine = Engine(
                self._runner,
                text,
                manifest.eos_token_ids,
                settings,
                gate=shared,
                metrics=metrics,
                fixed_rows=fixed_rows,
            )
            digest = answer_digest(manifest)
            self._semantic, self._no_semantic = open_semantic(settings, digest, embedder, embed, metrics)
            self._redis = load_redis_tier(settings, metrics, lambda: self._engine.forget(self._redis))
            tiers: list[Tier] = [tier for tier in (self._redis, self._semantic) if tier is not None]
            self._engine = CachingEngine(
                engine, digest, text, settings, shared, tiers=tiers, metrics=metrics, most_kept=most_kept
            )
            self._replies = Replies(gate)
            self._loop = EngineLoop(self._engine, self._deliver, died)
            self._died = died
            self._step_watch = StepWatch(
                lambda: self._loop.seconds_of_step,
                settings.seconds_of_step(self._runner.limits.on_gpu),
                self._end_hung,
            )
            self._background = BackgroundRuns(self._loop.submit, self._loop.cancel, lambda: self._engine.stats)
            if self._semantic:
                self._semantic.checks = SemanticChecks(
                    self._background.compute,
                    lambda event: piece_text(text, event),
                    embed,
                    self._semantic.switch_off,
                    settings,
                    metrics,
                )
            self._engine.wake = self._guides.wake = self._loop.wake
            passed = PassedCancels(self._board, self._replies, self._loop.cancel)
            self._watch = VanishedWatch(gate, self._loop.cancel, ask, passed.look)
            self._metrics = metrics

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
            opened = self._requests.open(packed, token_ids)
            self._requests.note_asked()
            request = unpack_request(request_id, token_ids, opened, self._board.artifact)
            self._rules.recheck(request.sampling)
            self._rules.recheck_prompt_lookup(request.prompt_lookup)
            check_tenant(request.tenant)
            request = dataclasses.replace(request, guide=self._guides.guide_of(request.sampling, request.tenant))
            if request.semantic and self._semantic is None:
                raise InvalidRequest(f"semantic is true, which cannot be done here: {self._no_semantic}")
            self._loop.submit(self._with_deadline(request))
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
        """Answer `{"cancel": [id, ...]}` with how many requests that ends in this engine, `{"stats": true}` with the
        counters, or an error where a step hangs, `{"limits": true}` with the model's, `{"flush": true}` with how many
        kept answers that forgets."""
        try:
            answer = self._control(text)
        except EngineError as error:
            reply.fail(error.code, str(error))
            return
        reply.send(np.frombuffer(json.dumps(answer).encode(), dtype=np.uint8), last=True)

    def _control(self, text: bytes) -> dict[str, object]:
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidRequest("control is not JSON") from None
        match raw:
            case {"cancel": list(ids), **rest} if not rest and all(isinstance(i, str) for i in ids):
                is_passed = self._requests.pass_cancels(ids)
                return {"cancelled": self._loop.cancel(self._replies.find(ids, may_be_elsewhere=is_passed))}
            case {"stats": True, **rest} if not rest:
                self._step_watch.check()
                counted = {**dataclasses.asdict(self._engine.stats), **self._engine.cache_stats}
                redis = self._redis.stats if self._redis else {}
                semantic = self._semantic.stats if self._semantic else {}
                return {"healthy": self.healthy, **counted, **redis, **semantic}
            case {"limits": True, **rest} if not rest:
                return self._limits
            case {"flush": True, **rest} if not rest:
                return {"flushed": self._engine.flush()}
            case _:
                raise InvalidRequest(
                    'control must be {"cancel": [request id, ...]}, {"stats": true}, {"limits": true} or '
                    '{"flush": true}'
                )


def warm_up(runner: Runner) -> None:
    """Read the weights into memory and start the threads, so that the first request does not wait for that. What it
    writes into slot 0 belongs to nobody: a slot's content counts from when its owner has computed it."""
    num_tokens = min(runner.limits.prefill_chunk, runner.limits.max_length)
    prompt = np.zeros(num_tokens, dtype=np.int32)
    run_step(runner, StepBatch((Span(0, 0, prompt, wants_logits=True),)))
    run_step(runner, StepBatch((Span(0, 0, prompt[:1], wants_logits=True),)))
