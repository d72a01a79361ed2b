"""A model repository that knows one trick: its `autoglm` says nothing for as many seconds as it is asked to, then
answers.

For tests of what a client does meanwhile. It writes a line to the file `asked` for each request that it takes. Its
`engine` tells limits, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

_OPTIONS = {
    "stream": "BOOL",
    "deadline_ms": "INT32",
    "heartbeat_ms": "INT32",
    "cache": "STRING",
    "max_tokens": "INT32",
    "temperature": "FP32",
}
_OUTPUTS = {
    "text_output": "STRING",
    "finish_reason": "STRING",
    "prompt_tokens": "INT32",
    "completion_tokens": "INT32",
    "cached_tokens": "INT32",
    "stage_times": "FP32",
}

_MODEL = """
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        self.asked = Path(args["model_repository"]).parent / "asked"

    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().item().decode()
            with self.asked.open("a") as file:
                file.write(text + "\\n")
            threading.Thread(target=answer, args=(request.get_response_sender(), float(text)), daemon=True).start()


def answer(sender, seconds):
    time.sleep(seconds)
    values = {
        "text_output": np.array([[b"so it was"]], dtype=np.object_),
        "finish_reason": np.array([[b"stop"]], dtype=np.object_),
        "prompt_tokens": np.array([[1]], dtype=np.int32),
        "completion_tokens": np.array([[3]], dtype=np.int32),
        "cached_tokens": np.array([[0]], dtype=np.int32),
        "stage_times": np.zeros((1, 6), dtype=np.float32),
    }
    tensors = [pb_utils.Tensor(name, value) for name, value in values.items()]
    sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)
"""


_ENGINE = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils

LIMITS = json.dumps({"max_length": 64, "vocab_size": 8, "num_slots": 1}).encode()


class TritonPythonModel:
    def execute(self, requests):
        event = pb_utils.Tensor("event", np.frombuffer(LIMITS, dtype=np.uint8)[np.newaxis])
        return [pb_utils.InferenceResponse([event]) for _ in requests]
"""


def write_silent_repository(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """`without`: options that it does not know."""
    options = {name: kind for name, kind in _OPTIONS.items() if name not in without}
    inputs = [
        _tensor("text_input", "STRING"),
        *(_tensor(name, kind, "optional: true") for name, kind in options.items()),
    ]
    outputs = [_tensor(name, kind, dims=6 if name == "stage_times" else 1) for name, kind in _OUTPUTS.items()]
    decoupled = "model_transaction_policy { decoupled: true }"
    _write(folder / "autoglm", _MODEL, inputs, outputs, decoupled)
    _write(folder / "engine", _ENGINE, [_tensor("control", "STRING")], [_tensor("event", "UINT8", dims=-1)], "")
    return folder


def _write(folder: Path, model: str, inputs: list[str], outputs: list[str], more: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(model)
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}"\nbackend: "python"\nmax_batch_size: 64\n'
        f"input [ {', '.join(inputs)} ]\noutput [ {', '.join(outputs)} ]\n"
        f"{more}\ninstance_group [ {{ kind: KIND_CPU, count: 1 }} ]\n"
    )


def _tensor(name: str, kind: str, more: str = "", dims: int = 1) -> str:
    return f'{{ name: "{name}", data_type: TYPE_{kind}, dims: [ {dims} ] {more} }}'


def num_asked(folder: Path) -> int:
    """How many requests it took so far."""
    file = folder / "asked"
    return len(file.read_text().splitlines()) if file.exists() else 0
