"""Streams an answer from the ensemble `autoglm`, cancels it after two pieces, and reads it to its end.

pip install tritonclient[grpc]; python cancel.py 127.0.0.1:8001
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton

ID = "story 1 of this process"  # yours; unique among what is under way


def tensor(name: str, datatype: str, value: Any) -> triton.InferInput:
    made = triton.InferInput(name, [1, 1], datatype)
    made.set_data_from_numpy(np.array([[value]], dtype=triton_types[datatype]))
    return made


triton_types = {"BYTES": np.object_, "BOOL": np.bool_, "INT32": np.int32}


def open_stream(address: str) -> tuple[triton.InferenceServerClient, queue.Queue[Any]]:
    client = triton.InferenceServerClient(address)
    responses: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: responses.put(error or result))
    return client, responses


def cancel(address: str, request_id: str) -> None:
    """A control request goes to the model `engine`, on a stream of its own. It ends every request of that id, also one
    that is still being tokenized. Never `stop_stream(cancel_requests=True)`: Triton 2.51 then counts the request as in
    flight for ever.
    """
    client, responses = open_stream(address)
    control = tensor("control", "BYTES", json.dumps({"cancel": [request_id]}).encode())
    client.async_stream_infer("engine", [control], request_id=f"cancel {request_id}")
    responses.get()
    client.stop_stream()


def main(address: str = "127.0.0.1:8001") -> None:
    client, responses = open_stream(address)
    inputs = [
        tensor("text_input", "BYTES", b"Once upon a time"),
        tensor("stream", "BOOL", True),
        tensor("max_tokens", "INT32", 500),
        tensor("ignore_eos", "BOOL", True),
        tensor("deadline_ms", "INT32", 60_000),  # ends it where the cancel is never sent
    ]
    # Without an empty final response the end of an answer that has no further piece is never sent.
    client.async_stream_infer("autoglm", inputs, request_id=ID, enable_empty_final_response=True)
    pieces, reason = 0, b""
    while not reason:
        response = responses.get()
        if isinstance(response, Exception):
            sys.exit(str(response))
        pieces += bool(response.as_numpy("text_output").item())  # empty: a heartbeat
        reason = response.as_numpy("finish_reason").item()
        if pieces == 2 and not reason:
            cancel(address, ID)
            pieces += 1
    print(f"finish reason: {reason.decode()}")
    client.stop_stream()


if __name__ == "__main__":
    main(*sys.argv[1:])
