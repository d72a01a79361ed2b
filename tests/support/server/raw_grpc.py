"""Triton's gRPC protocol without our client, so that the server's tests do not rest on it.

Run as a script, it streams long answers from COUNT processes and prints their ids: python raw_grpc.py URL COUNT
"""

from __future__ import annotations

import json
import os
import queue
import sys
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from autoglm_engine.options.table import OPTIONS

_DTYPES = {
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "BYTES": np.object_,
}
_OPTION_TYPES = {
    **{name: "BYTES" if option.dtype == "STRING" else option.dtype for name, option in OPTIONS.items()},
    **dict.fromkeys(("text_input", "messages", "control"), "BYTES"),
}


@dataclass
class Answer:
    text: str = ""
    finish_reason: str = ""
    error: str = ""
    num_responses: int = 0
    last: dict[str, Any] = field(default_factory=dict)


def tensor(name: str, value: Any, dtype: str | None = None, shape: list[int] | None = None) -> triton.InferInput:
    dtype = dtype or _OPTION_TYPES[name]
    array = np.array(value if isinstance(value, list) else [value], dtype=_DTYPES[dtype])
    made = triton.InferInput(name, shape or [1, array.size], dtype)
    made.set_data_from_numpy(array.reshape(shape or [1, array.size]))
    return made


class Stream:
    """One gRPC stream with any number of requests in flight, told apart by their ids."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self._client = triton.InferenceServerClient(url)
        self._results: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._results.put((result, error)), headers=headers)
        self.answers: dict[str, Answer] = {}
        self.ended: set[str] = set()

    def send(
        self, inputs: list[triton.InferInput], model: str = "autoglm", request_id: str = "", **parameters: Any
    ) -> str:
        """`request_id`: of a request that ended, which is used again."""
        request_id = request_id or uuid.uuid4().hex
        self.ended.discard(request_id)
        self.answers[request_id] = Answer()
        self._client.async_stream_infer(
            model, inputs, request_id=request_id, enable_empty_final_response=True, parameters=parameters or None
        )
        return request_id

    def generate(self, text: str = "Once upon a time", *, request_id: str = "", **options: Any) -> str:
        inputs = {"text_input": text.encode(), "stream": True, **options}
        return self.send([tensor(name, value) for name, value in inputs.items()], request_id=request_id)

    def next(self, timeout: float = 300.0) -> str:
        """Take one response; the id that it belongs to."""
        result, error = self._results.get(timeout=timeout)
        if error is not None:
            request_id = _id_of(error, self.answers, self.ended)
            self.answers[request_id].error = error.message()
            self.ended.add(request_id)
            return request_id
        response = result.get_response()
        answer = self.answers[response.id]
        if response.outputs:
            answer.num_responses += 1
            answer.last = {output.name: result.as_numpy(output.name) for output in response.outputs}
            if "text_output" in answer.last:
                answer.text += answer.last["text_output"].item().decode()
                answer.finish_reason = answer.last["finish_reason"].item().decode()
        if response.parameters["triton_final_response"].bool_param:
            self.ended.add(response.id)
        return str(response.id)

    def finish(self, request_id: str, timeout: float = 300.0) -> Answer:
        """Take responses until this request ended."""
        while request_id not in self.ended:
            self.next(timeout)
        return self.answers[request_id]

    def control(self, **what: Any) -> dict[str, Any]:
        answer = self.finish(self.send([tensor("control", json.dumps(what).encode())], model="engine"))
        assert not answer.error, answer.error
        decoded: dict[str, Any] = json.loads(answer.last["event"].tobytes())
        return decoded

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _id_of(error: Any, answers: dict[str, Answer], ended: set[str]) -> str:
    """A streamed error says its request's id only in words, and not always: then one request must be in flight."""
    open_ids = [request_id for request_id in answers if request_id not in ended]
    named = [request_id for request_id in open_ids if request_id in error.message()]
    found = named or open_ids
    assert len(found) == 1, f"the error {error.message()!r} belongs to one of {len(found)} requests"
    return found[0]


def stream_for_ever(url: str) -> None:
    """Print this process's id once a long answer has begun, and read on."""
    with Stream(url) as stream:
        stream.generate(f"Once {os.getpid()}", max_tokens=900, ignore_eos=True)
        stream.next()
        os.write(1, b"%d\n" % os.getpid())  # in one piece: others write to the same pipe
        while True:
            stream.next()


if __name__ == "__main__":
    # Forked before any channel is open, so that the libraries are imported once for all of them.
    for _ in range(int(sys.argv[2]) - 1):
        if os.fork() == 0:
            break
    stream_for_ever(sys.argv[1])
