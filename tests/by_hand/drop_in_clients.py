"""tritonclient and the standard library ask a server: python drop_in_clients.py GRPC_URL HTTP_URL.

Run by drop_in.py in an environment that has no more than tritonclient[all].
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import queue
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as aio_client
import tritonclient.http as http_client
import tritonclient.http.aio as aio_http_client

TEXT = "The capital of France is"
MODELS = ("autoglm", "ensemble", "vllm_model")


def inputs(model: str, *, stream: bool) -> list[Any]:
    shape = [1] if model == "vllm_model" else [1, 1]
    values: dict[str, tuple[str, Any]] = {
        "text_input": ("BYTES", np.array([TEXT.encode()], dtype=np.object_)),
        "stream": ("BOOL", np.array([stream])),
        "exclude_input_in_output": ("BOOL", np.array([True])),
    }
    if model == "vllm_model":
        said = json.dumps({"max_tokens": 8, "temperature": 0})
        values["sampling_parameters"] = ("BYTES", np.array([said.encode()], dtype=np.object_))
    else:
        values |= {"max_tokens": ("INT32", np.array([8], np.int32)), "temperature": ("FP32", np.array([0], np.float32))}
    made = []
    for name, (dtype, array) in values.items():
        made.append(grpc_client.InferInput(name, shape, dtype))
        made[-1].set_data_from_numpy(array.reshape(shape))
    return made


def text_of(results: list[Any]) -> str:
    pieces = [result.as_numpy("text_output") for result in results]
    return b"".join(piece.reshape(-1)[0] for piece in pieces if piece is not None).decode()


def sync_stream(url: str, model: str) -> str:
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpc_client.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        client.async_stream_infer(model, inputs(model, stream=True), enable_empty_final_response=True)
        results = []
        while not results or not results[-1].get_response().parameters["triton_final_response"].bool_param:
            result, error = found.get(timeout=120)
            if error is not None:
                raise RuntimeError(error)
            results.append(result)
    return text_of(results)


async def aio_stream(url: str, model: str) -> str:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": inputs(model, stream=True), "enable_empty_final_response": True}

    results = []
    async with aio_client.InferenceServerClient(url) as client:
        async for result, error in client.stream_infer(requests()):
            if error is not None:
                raise RuntimeError(error)
            results.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    return text_of(results)


def generate(url: str, model: str) -> str:
    body = {"text_input": TEXT, "parameters": {"max_tokens": 8, "temperature": 0}}
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(json.load(response)["text_output"])


def described(url: str, model: str) -> str:
    """What HTTP's client can ask of a decoupled model: its state, not an answer."""
    with http_client.InferenceServerClient(url.removeprefix("http://")) as client:
        if not client.is_server_ready() or not client.is_model_ready(model):
            raise RuntimeError(f"{model} is not ready")
        told = client.get_model_metadata(model)
    return f"{len(told['inputs'])} inputs, {len(told['outputs'])} outputs"


async def described_aio(url: str, model: str) -> str:
    async with aio_http_client.InferenceServerClient(url.removeprefix("http://")) as client:
        return str((await client.get_model_config(model))["platform"])


def main() -> None:
    if importlib.util.find_spec("autoglm_client") is not None:
        raise RuntimeError("this environment has this project's client, so it is no stranger's")
    grpc_url, http_url = sys.argv[1:]
    ways: dict[str, Callable[[str], str]] = {
        "gRPC stream": lambda model: sync_stream(grpc_url, model),
        "gRPC stream, asyncio": lambda model: asyncio.run(aio_stream(grpc_url, model)),
        "HTTP /generate": lambda model: generate(http_url, model),
    }
    for model in MODELS:
        texts = set()
        for way, ask in ways.items():
            began = time.perf_counter()
            texts.add(ask(model))
            print(f"{model:<12}{way:<24}{(time.perf_counter() - began) * 1000:6.0f} ms  {sorted(texts)[-1]!r}")
        if len(texts) != 1 or not texts.pop():
            raise RuntimeError(f"{model} answered differently in two ways")
        print(
            f"{model:<12}{'HTTP, HTTP asyncio':<24}{described(http_url, model)}, "
            f"{asyncio.run(described_aio(http_url, model))}"
        )


if __name__ == "__main__":
    main()
