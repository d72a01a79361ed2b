"""A real server in a mount namespace of its own, whose /dev/shm is as small as Docker's, and what is sent to it there.

Run as a script, in such a namespace, it starts a server, sends hostile and ordinary requests, and prints what came of
them as JSON: python small_shared_memory.py ARTIFACT NUM_REQUESTS
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import AutoGLMError, Client, SharedMemory
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

ROOT = Path(__file__).parents[3]
SHARED_MEMORY = Path("/dev/shm")
MEBIBYTES = 64
SECONDS = 3000.0
_MIB = 1 << 20
_PER_STREAM = 60
_NUM_ORDINARY = 2  # streams that ask again and again beside the hostile ones
_MOUNT = f'mount -t tmpfs -o size={MEBIBYTES}m tmpfs {SHARED_MEMORY} && exec "$@"'
_UNBOUNDED = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
_TROUBLE = re.compile(r"terminate called|what\(\):|Signal \(|died")
_SENTENCES = ("INVALID_ARG: ", "UNAVAILABLE: no embedder", "Failed to increase the shared memory pool size")


# ---- outside


def in_namespace(*command: str) -> list[str]:
    """The command that runs `command` where /dev/shm has 64 MiB."""
    users = () if os.geteuid() == 0 else ("--map-root-user",)
    return ["unshare", *users, "--mount", "sh", "-c", _MOUNT, "sh", *command]


def why_not() -> str | None:
    """Why this system gives no such namespace; None where it does."""
    try:
        done = subprocess.run(in_namespace("true"), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no unshare here"
    return None if done.returncode == 0 else f"no mount namespace: {done.stderr.strip()}"


def outcome(artifact: Path, num_requests: int) -> dict[str, Any]:
    """What the script printed."""
    command = in_namespace(sys.executable, __file__, str(artifact), str(num_requests))
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- inside


def request(model: str, **tensors: tuple[str, list[int], bytes]) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name=model)
    for name, (datatype, shape, content) in tensors.items():
        made.inputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_input_contents.append(content)
    return made


def string(size: int) -> tuple[str, list[int], bytes]:
    return "BYTES", [1, 1], size.to_bytes(4, "little") + b"x" * size


def ordinary() -> pb.ModelInferRequest:
    return request(
        "autoglm",
        text_input=("BYTES", [1, 1], b"\x05\0\0\0Hello"),
        max_tokens=("INT32", [1, 1], (4).to_bytes(4, "little")),
        ignore_eos=("BOOL", [1, 1], b"\1"),
        stream=("BOOL", [1, 1], b"\1"),
    )


def hostile(size: int) -> list[pb.ModelInferRequest]:
    """One for each model that anybody may ask, with `size` bytes."""
    ids = ("INT32", [1, 1], bytes(4))
    return [
        request("autoglm", text_input=string(size)),
        request("autoglm", messages=string(size)),
        request("autoglm", text_input=string(5), guided_json=string(size)),
        request("engine", token_ids=ids, request=("UINT8", [1, size], bytes(size))),
        request("engine", control=string(size)),
        request("detokenizer", event=("UINT8", [1, size], bytes(size))),
        request("embedder", text=string(size)),
        request("vision", image=("UINT8", [1, size], bytes(size)), request=("UINT8", [1, 1], bytes(1))),
    ]


def answers(url: str, requests: Iterable[pb.ModelInferRequest]) -> Iterator[pb.ModelStreamInferResponse]:
    """All of one gRPC stream, which ends by itself: nothing is cancelled."""
    with grpc.insecure_channel(url, options=_UNBOUNDED) as channel:
        yield from service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(list(requests)))


class Attack:
    def __init__(self, server: LocalServer, num_requests: int) -> None:
        self._server = server
        self._wanted = num_requests
        self._lock = threading.Lock()
        self.refused: Counter[str] = Counter()
        self.failures: list[str] = []
        self.num_ordinary = 0

    def run(self) -> None:
        over = threading.Event()
        readers = [threading.Thread(target=self._ask_ordinary, args=(over,)) for _ in range(_NUM_ORDINARY)]
        for reader in readers:
            reader.start()
        try:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(self._send, self._streams()))
            self._over_http()
            self._over_shared_memory()
        finally:
            over.set()
        for reader in readers:
            reader.join()

    def _streams(self) -> Iterator[list[pb.ModelInferRequest]]:
        """Sixty of one megabyte to each model, one of 10 MB and one of 70; then smaller ones until there were
        enough."""
        large = hostile(_MIB)
        yield from ([one] * _PER_STREAM for one in large)
        for size in (10 * _MIB, 70 * _MIB):
            yield from ([one] for one in hostile(size))
        num_sent = len(large) * (_PER_STREAM + 2)
        sizes = (200_000, 3 * _MIB, 180_000, 7 * _MIB, _MIB)
        for size, kind in itertools.cycle(itertools.product(sizes, range(len(large)))):
            if num_sent >= self._wanted:
                return
            count = min(self._wanted - num_sent, 8 * _PER_STREAM if size < _MIB else _PER_STREAM)
            num_sent += count
            yield [hostile(size)[kind]] * count

    def _send(self, requests: list[pb.ModelInferRequest]) -> None:
        try:
            for answer in answers(self._server.grpc_url, requests):
                self._count(answer)
        except grpc.RpcError as error:
            self._fail(f"{requests[0].model_name}: {error}")

    def _count(self, answer: pb.ModelStreamInferResponse) -> None:
        said = answer.error_message
        if not said and _finish(answer) == "length":
            with self._lock:
                self.num_ordinary += 1
        known = next((sentence for sentence in _SENTENCES if sentence in said), None)
        if said and known is None:
            self._fail(said)
        elif known:
            with self._lock:
                self.refused[known] += 1

    def _ask_ordinary(self, over: threading.Event) -> None:
        while not over.is_set():
            try:
                last = [
                    answer.error_message or _finish(answer) for answer in answers(self._server.grpc_url, [ordinary()])
                ]
            except grpc.RpcError as error:
                last = [str(error)]
            if last[-1:] != ["length"]:
                self._fail(f"an ordinary request: {last}")
                return
            with self._lock:
                self.num_ordinary += 1

    def _over_http(self) -> None:
        for size in (10 * _MIB, 70 * _MIB):
            body = json.dumps({"text_input": "x" * size}).encode()
            asked = urllib.request.Request(f"{self._server.http_url}/v2/models/autoglm/generate", data=body)
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=SECONDS)
            except urllib.error.HTTPError as error:
                self._count(pb.ModelStreamInferResponse(error_message=error.read().decode()))
            except OSError as error:
                self._fail(f"over HTTP: {error}")

    def _over_shared_memory(self) -> None:
        """Regions that are registered with the server's key, of a client that has large inputs and of one that asks too
        much."""
        memory = SharedMemory(key=self._server.shared_memory_key)
        for size in (300_000, 20 * _MIB):
            with Client(self._server.grpc_url, shared_memory=memory) as client:
                try:
                    client.generate("x" * size)
                except AutoGLMError as error:
                    self._count(pb.ModelStreamInferResponse(error_message=f"INVALID_ARG: {error}"))

    def _fail(self, said: str) -> None:
        with self._lock:
            self.failures.append(said[:300])


def _finish(answer: pb.ModelStreamInferResponse) -> str:
    """Of an answer of the ensemble; empty before its end."""
    names = [output.name for output in answer.infer_response.outputs]
    contents = answer.infer_response.raw_output_contents
    return contents[names.index("finish_reason")][4:].decode() if "finish_reason" in names else ""


def main(artifact: Path, num_requests: int) -> dict[str, Any]:
    size = os.statvfs(SHARED_MEMORY)
    with LocalServer(ROOT / "model_repository", artifact=artifact, env={"AUTOGLM_CACHE_MODE": "off"}) as server:
        attack = Attack(server, num_requests)
        attack.run()
        regions = [path.stat().st_size for path in SHARED_MEMORY.iterdir() if not path.name.startswith("autoglm-acks-")]
        return {
            "mebibytes": size.f_blocks * size.f_frsize // _MIB,
            "requests": attack.num_ordinary + sum(attack.refused.values()),
            "ordinary": attack.num_ordinary,
            "refused": attack.refused,
            "failures": attack.failures,
            "healthy": server.is_healthy(timeout=60.0),
            "log": [line for line in server.log_text().splitlines() if _TROUBLE.search(line)],
            "regions": regions,
        }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
