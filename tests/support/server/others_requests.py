"""Requests as programs send them that were written for other backends: by their shapes and types, over a gRPC stream.

Facts of Triton's OpenAI frontend are from its `engine/utils/triton.py`, of genai-perf from its converters, of vLLM's
client from `samples/client.py` (all of 2026).
"""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import json_format

_DTYPES = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "INT32": np.int32,
    "FP32": np.float32,
    "UINT64": np.uint64,
    "INT64": np.int64,
}
TEXT = "The capital of France is"


@dataclass
class Answered:
    """`responses`: of each the outputs, as they came. `error`: the sentence that ended it."""

    responses: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(str(piece.decode()) for piece in self.all("text_output"))

    @property
    def num_output_tokens(self) -> int:
        return sum(self.all("num_output_tokens"))

    def all(self, name: str) -> list[Any]:
        """The values of an output, over all responses."""
        return [value for response in self.responses for value in response[name].reshape(-1).tolist()]


def tensor(name: str, dtype: str, values: Any, *, batch: bool) -> triton.InferInput:
    """Of one dimension, or, with `batch`, of two, the first of which is 1."""
    array = np.array(values if isinstance(values, list) else [values], dtype=_DTYPES[dtype])
    shape = [1, array.size] if batch else [array.size]
    made = triton.InferInput(name, shape, dtype)
    made.set_data_from_numpy(array.reshape(shape))
    return made


def frontend_trtllm(text: str = TEXT, *, stream: bool = False, **more: Any) -> list[triton.InferInput]:
    """Triton's OpenAI frontend to an ensemble: always these counts; options where the caller set them, seeds as
    UINT64."""
    types = {
        "max_tokens": "INT32",
        "stop_words": "BYTES",
        "top_p": "FP32",
        "temperature": "FP32",
        "frequency_penalty": "FP32",
        "presence_penalty": "FP32",
        "seed": "UINT64",
        "exclude_input_in_output": "BOOL",
        "guided_decoding_guide_type": "BYTES",
        "guided_decoding_guide": "BYTES",
    }
    made = [tensor("text_input", "BYTES", text.encode(), batch=True), tensor("stream", "BOOL", stream, batch=True)]
    made += [tensor(name, types[name], _raw(value), batch=True) for name, value in {"max_tokens": 16, **more}.items()]
    counts = ("return_num_input_tokens", "return_num_output_tokens")
    return made + [tensor(name, "BOOL", True, batch=True) for name in counts]


def frontend_vllm(
    text: str = TEXT, *, stream: bool = False, logprobs: bool = False, **sampling: Any
) -> list[triton.InferInput]:
    """The same to a model of vLLM's backend: one dimension, and the options as JSON."""
    flags = {
        "return_logprobs": logprobs,
        "stream": stream,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    made = [tensor("text_input", "BYTES", text.encode(), batch=False)]
    made += [tensor(name, "BOOL", value, batch=False) for name, value in flags.items()]
    return [*made, tensor("sampling_parameters", "BYTES", json.dumps(sampling).encode(), batch=False)]


def ask(url: str, model: str, inputs: list[triton.InferInput], parameters: Mapping[str, Any] | None = None) -> Answered:
    """One request on a stream of its own."""
    answered = Answered()
    for result, error in _results(url, model, inputs, parameters):
        if error is not None:
            answered.error = str(error)
        elif result.get_response().outputs:
            names = [output.name for output in result.get_response().outputs]
            answered.responses.append({name: result.as_numpy(name) for name in names})
    return answered


def _results(url: str, model: str, inputs: list[triton.InferInput], parameters: Any) -> Iterator[tuple[Any, Any]]:
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = triton.InferenceServerClient(url)
    client.start_stream(lambda result, error: found.put((result, error)))
    client.async_stream_infer(model, inputs, parameters=parameters, enable_empty_final_response=True)
    last = False
    while not last:
        result, error = found.get(timeout=300)
        last = error is not None or _is_final(result)
        yield result, error
    client.stop_stream()
    client.close()


def _is_final(result: Any) -> bool:
    parameters = json_format.MessageToDict(result.get_response()).get("parameters", {})
    return bool(parameters.get("triton_final_response", {}).get("boolParam", False))


def _raw(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    return [item.encode() for item in value] if isinstance(value, list) else value
