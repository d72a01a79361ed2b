"""The detokenizer model's core: one packed event in, the ensemble's outputs out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Event, TokenLogprobs
from autoglm_engine.errors import InvalidRequest, RequestFailed
from autoglm_engine.manifest import Manifest
from autoglm_engine.messages import Ack, Packed, SentEvent, unpack_sent_event
from autoglm_engine.tokenizer.artifact_texts import TOKENIZER_NAME, load_tokenizer
from autoglm_engine.tokenizer.incremental import TokenText

from .foreign_outputs import FOREIGN_OUTPUTS, ForeignOutputs

Outputs = dict[str, npt.NDArray[Any]]
TextOf = Callable[[str], TokenText]  # by the artifact's `Manifest.short_digest`
OpenEvent = Callable[[Packed], tuple[Packed, Callable[[Ack], None]]]  # a sealed event -> (it, how it is acknowledged)
_SMALL_EVENT = 1 << 17  # bytes; its outputs always find room


class Detokenizer:
    """Text of the pieces of all streams. Every piece decodes on its own; all that is kept is the time spent so far, by
    acknowledgement cell, so there is a bound to it.

    `text_of` gives the text of an artifact's token ids, or raises EngineError. `open_event` takes the seal off. Each
    event is acknowledged before its outputs leave. `room`: bytes that an event and its outputs may have together; None:
    any.
    """

    def __init__(
        self,
        text_of: TextOf,
        open_event: OpenEvent,
        clock: Callable[[], float] = time.monotonic,
        room: int | None = None,
    ) -> None:
        self._text_of = text_of
        self._open_event = open_event
        self._clock = clock
        self._room = room
        self._spent_ms: dict[int, tuple[str, float]] = {}
        self._foreign = ForeignOutputs()

    def outputs(self, packed: Packed, wanted: Collection[str] = ()) -> Outputs:
        """Each of the ensemble's outputs, [1, 1] but `stage_times` [1, 6]; of those of other backends' models the
        `wanted`.

        Raises InvalidRequest for what is no event, RequestFailed for an event that says so, Unavailable where the
        event's artifact is not to be had, and for an event whose outputs have no room.
        """
        begin = self._clock()
        content, acknowledge = self._open_event(packed)
        sent = unpack_sent_event(content)
        event, ack = sent.event, sent.ack
        if ack is not None:
            acknowledge(ack)
        if event.error is not None:
            raise RequestFailed(event.error_code, event.error)
        vocabulary = self._text_of(sent.artifact)  # also of an engine's first event, which has no text: it is read then
        text = piece_text(vocabulary, event)
        logprobs = json.dumps([_logprobs(vocabulary, entry) for entry in event.logprobs], ensure_ascii=False)
        outputs = _tensors(sent, text, logprobs, self._spent(event, ack, (self._clock() - begin) * 1000))
        if not FOREIGN_OUTPUTS.isdisjoint(wanted):
            outputs |= self._foreign.of(event, None if ack is None else ack.cell, wanted, vocabulary)
        self._check_room(packed.nbytes, outputs)
        return outputs

    def _check_room(self, event_bytes: int, outputs: Outputs) -> None:
        if self._room is None or event_bytes < _SMALL_EVENT:
            return
        needed = event_bytes + sum(map(_num_bytes, outputs.values()))
        if needed > self._room:
            raise InvalidRequest(
                f"the answer takes {needed} bytes in one piece, and {self._room} of shared memory are there for it; "
                "have it streamed, or ask for fewer log-probabilities or tokens"
            )

    def _spent(self, event: Event, ack: Ack | None, now_ms: float) -> float:
        if ack is None:
            return now_ms
        request_id, before_ms = self._spent_ms.get(ack.cell, ("", 0.0))
        total_ms = now_ms + (before_ms if request_id == event.request_id else 0.0)
        self._spent_ms[ack.cell] = (event.request_id, total_ms)
        return total_ms


def load_text(folder: Path, manifest: Manifest) -> TokenText:
    """Raises ArtifactError."""
    manifest.verify_files(folder, (TOKENIZER_NAME,), digests=True)
    return TokenText(load_tokenizer(folder))


def piece_text(text: TokenText, event: Event) -> str:
    piece = text.decode(event.token_ids, event.is_first) if event.token_ids else ""
    if event.text_bytes is None:
        return piece
    return piece.encode()[: event.text_bytes].decode(errors="ignore")  # the engine cuts between characters


def _logprobs(vocabulary: TokenText, entry: TokenLogprobs) -> dict[str, Any]:
    top = [_candidate(vocabulary, token_id, logprob) for token_id, logprob in entry.top]
    return {**_candidate(vocabulary, entry.token_id, entry.logprob), "top": top}


def _candidate(vocabulary: TokenText, token_id: int, logprob: float) -> dict[str, Any]:
    return {"token_id": token_id, "token": vocabulary.decode((token_id,), is_first=False), "logprob": logprob}


def _tensors(sent: SentEvent, text: str, logprobs: str, detokenize_ms: float) -> Outputs:
    event, stages = sent.event, sent.event.stages
    times = [stages.queue_ms, stages.tokenize_ms, stages.prefill_ms, stages.decode_ms, detokenize_ms, stages.embed_ms]
    return {
        "text_output": _string(text),
        "finish_reason": _string(event.finish_reason.value if event.finish_reason else ""),
        "prompt_tokens": _int(event.usage.prompt_tokens),
        "completion_tokens": _int(event.usage.completion_tokens),
        "cached_tokens": _int(event.usage.cached_tokens),
        "stage_times": np.array([times], dtype=np.float32),
        "logprobs_output": _string(logprobs),
        "cache_hit": _string(event.cache_hit.value),
        "cache_age_ms": np.array([[event.cache_age_ms]], dtype=np.float32),
        "sequence_number": _int(sent.sequence_number),
        "prompt_thinks": np.array([[sent.prompt_thinks]]),
    }


def _string(value: str) -> npt.NDArray[Any]:
    return np.array([[value.encode()]], dtype=np.object_)


def _num_bytes(output: npt.NDArray[Any]) -> int:
    return sum(map(len, output.flat)) if output.dtype == np.object_ else output.nbytes


def _int(value: int) -> npt.NDArray[Any]:
    return np.array([[value]], dtype=np.int32)
