"""An attacker who has the server's ports and an account on its machine: what the inner models take from each other,
forged, changed, repeated or passed on before its turn, and boards of his own in shared memory.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.server_probe import stub_processes
from autoglm_engine.triton.board.file import PREFIX, Board, board_name
from autoglm_engine.triton.board.seal import SEAL_BYTES, Kind, Seal
from autoglm_engine.triton.board.server_identity import ServerIdentity

from tests.support.server.raw_grpc import Stream, tensor

SHARED_MEMORY = Path("/dev/shm")
NOBODY = 65534
ATTACKERS = 6  # at once
RIGHT_EVENT: dict[str, Any] = {"id": "x", "tokens": [1], "usage": [1, 1, 0], "stages": [0.0, 0.0, 0.0, 0.0, 0.0]}
# What no answer may hold: a batch that failed as a whole, and words of Python.
CLEAN = ("Failed to process the request(s)", "Traceback", "AttributeError", "INTERNAL")


@dataclass
class Tally:
    """What was tried, by its kind, and what came back that should not have."""

    tried: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    unclean: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, error: str) -> None:
        with self.lock:
            self.tried[kind] += 1
            if not error:
                self.accepted[kind] += 1
            if any(word in error for word in CLEAN):
                self.unclean.append(f"{kind}: {error[:300]}")


class Attacker:
    """One of several, with connections of its own and one message under way at a time."""

    def __init__(self, server: LocalServer, boards: ForgedBoards, tally: Tally, seed: int) -> None:
        self._server = server
        self._boards = boards
        self._tally = tally
        self._draw = random.Random(seed)
        self._stream = Stream(server.grpc_url)
        self._unary = triton.InferenceServerClient(server.grpc_url)
        self._events: list[bytes] = []  # real ones: of requests that he sent to the engine himself
        self._requests: list[tuple[list[int], bytes]] = []
        self._kinds: list[tuple[str, Callable[[], str]]] = [
            ("forged event", self._forged_event),
            ("forged event over HTTP", self._forged_event_over_http),
            ("event sealed with a forged board", self._event_of_a_forged_board),
            ("changed event", self._changed_event),
            ("repeated event", self._repeated_event),
            ("event passed on before its turn", self._early_event),
            ("forged request", self._forged_request),
            ("changed request", self._changed_request),
            ("repeated request", self._repeated_request),
            ("wrong tensors", self._wrong_tensors),
        ]
        self._weights = [30, 5, 15, 10, 10, 1, 15, 10, 1, 3]

    def close(self) -> None:
        self._stream.close()
        self._unary.close()

    def attack(self) -> None:
        ((kind, act),) = self._draw.choices(self._kinds, self._weights)
        self._tally.add(kind, act())

    # ---- events, to the detokenizer

    def _forged_event(self) -> str:
        return self._tell(self._head() + self._event())

    def _forged_event_over_http(self) -> str:
        raw = list(self._head() + self._event())
        body = {"inputs": [{"name": "event", "shape": [1, len(raw)], "datatype": "UINT8", "data": raw}]}
        connection = http.client.HTTPConnection(self._server.host, self._server.http_port, timeout=300)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v2/models/detokenizer/infer", json.dumps(body), headers)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return str(answer.get("error", ""))

    def _event_of_a_forged_board(self) -> str:
        """Under a key that he knows; the file is cut, or gone, at any moment."""
        with self._boards.one(self._draw) as seal:
            content = np.frombuffer(self._event(), dtype=np.uint8)
            return self._tell(seal.close(Kind.EVENT, content).tobytes())

    def _changed_event(self) -> str:
        changed = bytearray(self._real_event())
        changed[self._draw.randrange(len(changed))] ^= self._draw.randrange(1, 256)
        return self._tell(bytes(changed))

    def _repeated_event(self) -> str:
        return self._tell(self._real_event())

    def _early_event(self) -> str:
        """Its number is higher than those of events that the detokenizer has not seen yet."""
        before = len(self._events)
        self._ask_engine()
        return next((error for event in self._events[before:] if (error := self._tell(event))), "")

    def _head(self) -> bytes:
        """Where the seal should be: nothing, anything, or a real board's id."""
        tag = self._draw.randbytes(SEAL_BYTES - 8)
        real = [bytes.fromhex(name.removeprefix(PREFIX)) for name in self._boards.real]
        return self._draw.choice(
            [b"", b"\0" * SEAL_BYTES, self._draw.randbytes(8) + tag, *(name + tag for name in real)]
        )

    def _event(self) -> bytes:
        draw = self._draw
        number = draw.choice([0, 1, draw.randrange(10_000), 2**62, 2**63 - 1, 2**64, -1, 10**400])
        cell = draw.choice([0, 1, draw.randrange(2_000), -1, 2**31])
        board = draw.choice([*self._boards.real, PREFIX + secrets.token_hex(8), "../../etc/passwd"])
        changes: list[dict[str, Any]] = [
            {},
            {"ack": [board, cell, number]},
            {"ack": [cell, number]},
            {"ack": draw.choice([None, "x", [], {}, [1] * 9])},
            {"error": [draw.choice(["NO_SUCH_CODE", "__class__", "", 5]), "x"]},
            {"tokens": draw.choice([[2**70], "x", [[]]])},
            {"usage": [draw.choice([2**40, -1, "x"])] * 3},
            {"logprobs": [[1, "x", 5]]},
            {"text_bytes": -1},
            {"finish": "x"},
        ]
        raw = {**RIGHT_EVENT, **draw.choice(changes)}
        return draw.choice(
            [json.dumps(raw).encode(), b"[" * draw.randrange(1, 5_000), draw.randbytes(draw.randrange(80))]
        )

    def _tell(self, event: bytes) -> str:
        if not event:
            event = b"\0"
        return self._infer("detokenizer", [tensor("event", list(event), "UINT8")])

    # ---- requests, to the engine

    def _forged_request(self) -> str:
        sampling = {"max_tokens": 5, "temperature": "hot", "stop": [], "logit_bias": []}
        raw = {
            "sampling": sampling,
            "stream": True,
            "arrival": 1e300,
            "deadline": None,
            "tokenize_ms": 0,
            "tenant": "x",
        }
        forged = self._head() + self._draw.choice([json.dumps(raw).encode(), b"{}", b"[]", self._draw.randbytes(50)])
        ids = [self._draw.choice([0, 1, -1, 2**31 - 1]) for _ in range(self._draw.randrange(1, 20))]
        return self._submit(ids, forged or b"\0")

    def _changed_request(self) -> str:
        """Other ids than what was sealed, or other options."""
        ids, sealed = self._real_request()
        if self._draw.random() < 0.5:
            return self._submit([*ids, -1], sealed)
        changed = bytearray(sealed)
        changed[self._draw.randrange(len(changed))] ^= self._draw.randrange(1, 256)
        return self._submit(ids, bytes(changed))

    def _repeated_request(self) -> str:
        return self._submit(*self._real_request())

    def _wrong_tensors(self) -> str:
        two = tensor("event", [1, 2, 3, 4], "UINT8", [2, 2])
        wrong: list[tuple[str, list[triton.InferInput]]] = [
            ("detokenizer", [two]),
            ("detokenizer", []),
            ("engine", [tensor("token_ids", [1], "INT32")]),
            ("engine", [tensor("request", [1], "UINT8")]),
            ("engine", [tensor("control", b"[" * 9_999)]),
            ("engine", [tensor("control", b'{"cancel": ["' + self._draw.randbytes(8).hex().encode() + b'"]}')]),
            ("embedder", [tensor("text", b"\xff" * 9, "BYTES")]),
            ("vision", [tensor("image", [1, 2, 3], "UINT8"), tensor("request", list(range(40)), "UINT8")]),
            ("vision", [tensor("image", [1], "UINT8")]),
            ("tokenizer", [tensor("text_input", b"x"), tensor("max_tokens", -5)]),
        ]
        model, inputs = self._draw.choice(wrong)
        return (
            self._stream.finish(self._stream.send(inputs, model)).error
            if model in ("engine", "tokenizer", "vision")  # decoupled
            else self._infer(model, inputs)
        )

    def _submit(self, ids: list[int], sealed: bytes) -> str:
        inputs = [tensor("token_ids", ids, "INT32"), tensor("request", list(sealed), "UINT8")]
        request_id = self._stream.send(inputs, "engine")
        while request_id not in self._stream.ended:
            self._stream.next()
            event = self._stream.answers[request_id].last.get("event")
            if event is not None:
                self._events.append(event.tobytes())
        del self._events[:-50]
        return self._stream.answers[request_id].error

    # ---- what he gets by asking as anybody may

    def _real_request(self) -> tuple[list[int], bytes]:
        if not self._requests or self._draw.random() < 0.01:
            inputs = {"text_input": f"Tale {self._draw.random()}".encode(), "stream": True, "max_tokens": 8}
            tensors = [tensor(name, value) for name, value in inputs.items()]
            answer = self._stream.finish(self._stream.send(tensors, "tokenizer")).last
            self._requests = [(answer["token_ids"].reshape(-1).tolist(), answer["request"].tobytes())]
        return self._requests[0]

    def _real_event(self) -> bytes:
        while not self._events:
            self._ask_engine()
        return self._draw.choice(self._events)

    def _ask_engine(self) -> None:
        self._submit(*self._real_request())

    def _infer(self, model: str, inputs: list[triton.InferInput]) -> str:
        try:
            self._unary.infer(model, inputs)
        except triton.InferenceServerException as error:
            return str(error)
        return ""


class ForgedBoards:
    """Another user's files between the real boards. Without being root they are this user's own, but open to others."""

    def __init__(self, server_pid: int) -> None:
        self._server = ServerIdentity.of(server_pid)
        self._made: set[Path] = set()

    @property
    def real(self) -> list[str]:
        """Anybody can list them."""
        names = [path.name for path in SHARED_MEMORY.glob(f"{PREFIX}*")]
        return [name for name in names if SHARED_MEMORY / name not in self._made][:3]

    @contextmanager
    def one(self, draw: random.Random) -> Iterator[Seal]:
        """A board of the right layout for this server, that is cut while it is in use; or none at all."""
        board_id, key = secrets.token_bytes(8), secrets.token_bytes(32)
        path = SHARED_MEMORY / board_name(board_id)
        self._made.add(path)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            Board.create(file, board_id, 64, self._server, key)
            os.fchmod(file, draw.choice([0o666, 0o600, 0o644]) if os.geteuid() == 0 else 0o666)
            if os.geteuid() == 0:
                os.fchown(file, NOBODY, NOBODY)
            with _cut_soon(file, draw.random() * 0.01) if draw.random() < 0.5 else contextlib.nullcontext():
                yield Seal(board_id, key)
        finally:
            path.unlink(missing_ok=True)
            self._made.discard(path)
            os.close(file)


@contextmanager
def _cut_soon(file: int, after_s: float) -> Iterator[None]:
    timer = threading.Timer(after_s, os.ftruncate, (file, 0))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def attack(server: LocalServer, count: int, tell: Callable[[int, Tally], object] = lambda done, tally: None) -> Tally:
    """`count` messages by several attackers at once. `tell` is called now and then with how many were sent."""
    assert server.pid is not None
    tally, boards = Tally(), ForgedBoards(server.pid)
    shares = [count // ATTACKERS + (place < count % ATTACKERS) for place in range(ATTACKERS)]

    def all_of(seed: int, share: int) -> None:
        attacker = Attacker(server, boards, tally, seed)
        with contextlib.closing(attacker):
            for _ in range(share):
                attacker.attack()

    with ThreadPoolExecutor(ATTACKERS) as pool:
        running = [pool.submit(all_of, seed, share) for seed, share in enumerate(shares)]
        while not all(one.done() for one in running):
            with contextlib.suppress(TimeoutError):
                running[0].result(5) if not running[0].done() else threading.Event().wait(1)
            tell(tally.tried.total(), tally)
        for one in running:
            one.result()
    return tally


def processes(server: LocalServer) -> dict[int, str]:
    """The models' processes: an attack may end none of them."""
    assert server.pid is not None
    return stub_processes(server.pid)
