"""llama.cpp through its Python binding, built here for this processor; sequences batched over its own C interface."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

from autoglm_perf.peers.protocol import Job, Timing, serve

_FILE_TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7}  # llama.cpp's numbers of them
_CHUNK = 512


class Batcher:
    """Sequences join a decode as soon as one of the others ended."""

    def __init__(self, path: Path, job: Job, slot_length: int = 256) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = slot_length * job.concurrency, job.concurrency
        params.n_batch = params.n_ubatch = _CHUNK
        params.n_threads = params.n_threads_batch = job.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(_CHUNK, 0, 1)

    def decode(self, rows: list[tuple[int, int, list[int]]]) -> dict[int, int]:
        """`rows`: (sequence, first position, tokens), whole prompts or single tokens; the likeliest next token of
        each."""
        import numpy as np

        batch, index, last = self.batch, 0, {}
        for sequence, start, tokens in rows:
            for offset, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, start + offset
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = offset == len(tokens) - 1
                index += 1
            last[sequence] = index - 1
        batch.n_tokens = index
        if code := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode ended with {code}")
        return {sequence: int(np.argmax(self.row(at))) for sequence, at in last.items()}

    def row(self, index: int) -> Any:
        """The logits `[vocab_size]` of one token of the last decode."""
        import numpy as np

        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, index), (self.vocab_size,))

    def take_best_threads(self, prompt: list[int], most: int) -> int:
        """Its threads wait by spinning, so on a machine with other work fewer may be faster."""

        def seconds(threads: int) -> float:
            self.lib.llama_set_n_threads(self.context, threads, threads)
            self.decode([(0, 0, prompt)])  # warm
            started = time.monotonic()
            for offset in range(16):
                self.decode([(0, len(prompt) + offset, prompt[:1])])
            self.forget(0)
            return time.monotonic() - started

        best = min(range(most, 0, -1), key=seconds)
        self.lib.llama_set_n_threads(self.context, best, best)
        return best

    def forget(self, sequence: int) -> None:
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), sequence, -1, -1)


class LlamaCpp:
    def prepare(self, job: Job) -> Path:
        import llama_cpp

        target = job.folder / f"{job.variant}.gguf"
        if not target.exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype, params.nthread = _FILE_TYPES[job.variant], job.threads
            params.allow_requantize = True
            code = llama_cpp.llama_model_quantize(str(job.float16).encode(), str(target).encode(), ctypes.byref(params))
            if code:
                raise RuntimeError(f"llama.cpp cannot quantise {job.float16.name}: code {code}")
        return target

    def measure(self, path: Path, job: Job) -> tuple[list[Timing], str]:
        batcher = Batcher(path, job)
        threads = batcher.take_best_threads(job.prompts[0], job.threads)
        return run(batcher, job), f"{threads} threads"

    def logits(self, path: Path, job: Job) -> list[Any]:
        import numpy as np

        batcher = Batcher(path, job, slot_length=1024)
        rows = []
        for ids in job.texts:
            rows.append(np.array([self._after(batcher, token, at) for at, token in enumerate(ids)], np.float32))
            batcher.forget(0)
        return rows

    def _after(self, batcher: Batcher, token: int, position: int) -> Any:
        batcher.decode([(0, position, [token])])
        return batcher.row(0).copy()


def run(batcher: Batcher, job: Job) -> list[Timing]:
    started, waiting, timings = time.monotonic(), job.prompts[::-1], list[Timing]()
    free = list(range(job.concurrency))
    active: dict[int, list[Any]] = {}  # position, next token, tokens so far, started, first token
    while waiting or active:
        rows = [(sequence, state[0], [state[1]]) for sequence, state in active.items()]
        room = _CHUNK - len(rows)
        while waiting and free and len(waiting[-1]) <= room:
            prompt, sequence = waiting.pop(), free.pop()
            room -= len(prompt)
            active[sequence] = [0, None, 0, time.monotonic() if timings else started, 0.0]
            rows.append((sequence, 0, prompt))
        chosen, lengths, now = batcher.decode(rows), {s: len(t) for s, _, t in rows}, time.monotonic()
        for sequence, token in chosen.items():
            state = active[sequence]
            state[0], state[1], state[2], state[4] = state[0] + lengths[sequence], token, state[2] + 1, state[4] or now
            if state[2] == job.max_tokens:
                timings.append((state[3], state[4], now, job.max_tokens))
                batcher.forget(sequence)
                free.append(sequence)
                del active[sequence]
    return timings


if __name__ == "__main__":
    serve(LlamaCpp())
