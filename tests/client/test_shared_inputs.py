"""Large inputs through shared memory: the same bytes arrive, nothing stays behind, and where it cannot be they are
sent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import AsyncClient, AutoGLMError, Client, InvalidRequestError, SharedMemory
from autoglm_client.exceptions import ServerUnavailableError
from autoglm_client.transport.segment import FOLDER, Block, Segment, remove_stale
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.support.client.client_fakes import FakeTransport, Script

PAGE = 4096
SMALL = SharedMemory(threshold_bytes=1000, max_bytes=16 * PAGE)


def left_behind() -> set[str]:
    return {path.name for path in FOLDER.glob("*autoglm-inputs-*")}


# ---- the segment


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-6, 5 * PAGE), max_size=40))
def test_blocks_never_overlap_and_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, moves: list[int]) -> None:
    """A negative number releases the oldest block."""
    segment = Segment(16 * PAGE, tmp_path_factory.mktemp("segment"))
    held: list[tuple[Block, bytes]] = []
    for number, move in enumerate(moves):
        if move < 0:
            if held:
                segment.release(held.pop(0)[0])
            continue
        content = bytes([number % 255 + 1]) * move
        if block := segment.put(content):
            held.append((block, content))
        assert segment.num_free == 16 * PAGE - sum(block.size for block, _ in held)
        for block, content in held:
            assert segment._memory[block.offset : block.offset + len(content)] == content
    for block, _ in held:
        segment.release(block)
    assert segment._free == [Block(0, 16 * PAGE)]
    segment.close()


def test_what_is_not_this_users_is_no_segment_of_a_killed_process(tmp_path: Path) -> None:
    """Anybody may put anything under such a name; root can open it all."""
    names = [f"autoglm-inputs-{number}" for number in range(5)]
    strangers, link, pipe, folder, own = (tmp_path / name for name in names)
    strangers.touch()
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").touch()
    os.mkfifo(pipe)
    folder.mkdir()
    own.touch()
    if os.geteuid() == 0:
        os.chown(strangers, 65534, 65534)
    else:
        strangers.unlink()
    assert remove_stale(tmp_path) == [own.name]
    assert (tmp_path / "elsewhere").exists() and os.path.lexists(link) and pipe.exists() and folder.exists()


def test_a_full_segment_takes_no_more(tmp_path: Path) -> None:
    segment = Segment(2 * PAGE, tmp_path)
    assert segment.put(b"a") == Block(0, PAGE)
    assert segment.put(bytes(PAGE + 1)) is None
    assert segment.put(bytes(PAGE)) == Block(PAGE, PAGE)
    segment.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["exit", "kill"])
def test_what_a_process_leaves_behind_is_removed_at_its_end_or_by_the_next(tmp_path: Path, ends: str) -> None:
    code = (
        "import sys; from pathlib import Path; from autoglm_client.transport.segment import Segment\n"
        f"s = Segment(4096, Path({str(tmp_path)!r})); print(s.name, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    name = process.stdout.readline().strip()
    assert remove_stale(tmp_path) == [], "it is in use"
    if ends == "kill":
        process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / name).exists() == (ends == "kill")
    assert remove_stale(tmp_path) == ([name] if ends == "kill" else [])
    assert not list(tmp_path.iterdir())


# ---- the transport


class Host(FakeTransport):
    """A server on this host, that reads what it is pointed to."""

    def __init__(self, *, refuses: AutoGLMError | None = None) -> None:
        super().__init__(Script())
        self.known: set[str] = set()
        self.calls: list[str] = []
        self.refuses = refuses
        self.read: list[tuple[bytes, bool]] = []  # text_input, and whether it came through memory

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any:
        if not method.startswith("SystemSharedMemory"):
            return await super().unary(method, request, timeout)
        self.calls.append(method.removeprefix("SystemSharedMemory"))
        if self.refuses is not None:
            raise self.refuses
        if method.endswith("Unregister"):
            self.known.discard(request.name)
        else:
            self.known.add(request.name)
        return None

    async def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]:
        async for response in super().stream(request if request.model_name == "engine" else self._read_all(request)):
            yield response

    def _read_all(self, request: pb.ModelInferRequest) -> pb.ModelInferRequest:
        """The request as if everything had been sent."""
        raw = iter(request.raw_input_contents)
        whole = pb.ModelInferRequest(model_name=request.model_name, id=request.id, inputs=request.inputs)
        for tensor in request.inputs:
            region = tensor.parameters["shared_memory_region"].string_param
            if region and region not in self.known:
                raise InvalidRequestError(f"Unable to find system shared memory region: '{region}'")
            whole.raw_input_contents.append(_read(tensor, region) if region else next(raw))
            if tensor.name == "text_input":
                self.read.append((whole.raw_input_contents[-1][4:], bool(region)))
        assert next(raw, None) is None, "more contents than tensors"
        return whole


def _read(tensor: Any, region: str) -> bytes:
    offset = tensor.parameters["shared_memory_offset"].int64_param
    size = tensor.parameters["shared_memory_byte_size"].int64_param
    with (FOLDER / region).open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def client_of(host: Host, sharing: SharedMemory = SMALL) -> AsyncClient:
    return AsyncClient("fake:1", transport=lambda address: host, shared_memory=sharing)


async def test_only_large_inputs_pass_through_memory_which_is_told_of_once_and_gone_in_the_end() -> None:
    host, before = Host(), left_behind()
    async with client_of(host) as client:
        await client.generate("small")
        assert not host.calls
        await asyncio.gather(*(client.generate(letter * 3000) for letter in "abcdefgh"))
        assert len(left_behind() - before) == 1
    assert host.read == [
        (b"small", False),
        *((letter * 3000, True) for letter in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h")),
    ]
    assert host.calls == ["Register", "Unregister"]
    assert left_behind() == before


async def test_what_finds_no_room_is_sent_and_room_comes_back() -> None:
    host = Host()
    host.script = Script(pause_s=0.01)
    async with client_of(host, SharedMemory(threshold_bytes=1000, max_bytes=2 * PAGE)) as client:
        await asyncio.gather(*(client.generate("x" * 3000) for _ in range(3)))
        await client.generate("y" * 3000)
    assert sorted(shared for _, shared in host.read) == [False, True, True, True]


async def test_a_server_that_was_started_anew_gets_the_bytes_and_then_the_memory_again() -> None:
    host = Host()
    async with client_of(host) as client:
        await client.generate("a" * 3000)
        host.known.clear()
        result = await client.generate("b" * 3000)
        await client.generate("c" * 3000)
    assert result.text == "one two three"
    assert host.read == [(b"a" * 3000, True), (b"b" * 3000, False), (b"c" * 3000, True)]


async def test_a_server_that_refuses_is_asked_once_and_gets_the_bytes(caplog: pytest.LogCaptureFixture) -> None:
    host, before = Host(refuses=ServerUnavailableError("This protocol is restricted")), left_behind()
    async with client_of(host) as client:
        for _ in range(3):
            await client.generate("a" * 3000)
    assert host.read == [(b"a" * 3000, False)] * 3
    assert host.calls == ["Register"]
    assert left_behind() == before
    assert [record.getMessage() for record in caplog.records] == [
        "shared memory is not used, large inputs are sent: This protocol is restricted"
    ]


async def test_other_errors_are_the_callers() -> None:
    host = Host()
    host.script = Script(errors=[InvalidRequestError("top_p is 7")])
    async with client_of(host) as client:
        with pytest.raises(InvalidRequestError, match="top_p is 7"):
            await client.generate("a" * 3000)
    assert len(host.read) == 1


def test_bounds_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"threshold_bytes must be between 1 and max_bytes \(4096\), got 5000"):
        SharedMemory(threshold_bytes=5000, max_bytes=4096)
    monkeypatch.setenv("AUTOGLM_SHARED_MEMORY_KEY", "k")
    assert SharedMemory.chosen(True) == SharedMemory("k")
    assert SharedMemory.chosen(False) is None
    assert "secret" not in repr(SharedMemory("secret"))


# ---- the real server

LONG = "-" * 6_000  # far fewer tokens


@pytest.mark.server
def test_the_real_server_reads_the_same_from_memory(server: LocalServer) -> None:
    before = left_behind()
    sharing = SharedMemory(server.shared_memory_key, threshold_bytes=1000)
    with Client(server.grpc_url) as plain, Client(server.grpc_url, shared_memory=sharing) as client:
        for prompt in (LONG, [{"role": "user", "content": LONG}]):
            expected = plain.generate(prompt, max_tokens=4, temperature=0.0)
            found = client.generate(prompt, max_tokens=4, temperature=0.0)
            assert (found.text, found.usage.prompt_tokens) == (expected.text, expected.usage.prompt_tokens)
        assert len(left_behind() - before) == 1, "it went through memory"
        with pytest.raises(InvalidRequestError, match="text_input has 2000000 bytes"):
            client.generate("x" * 2_000_000)
        results = list(client.map([f"{i}" + LONG for i in range(6)], max_tokens=2, concurrency=6))
        assert len(results) == 6
    assert left_behind() == before


@pytest.mark.server
def test_a_wrong_key_opens_nothing(server: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("", "wrong", server.control_key):
        with Client(server.grpc_url, shared_memory=SharedMemory(key, threshold_bytes=1000)) as client:
            assert client.generate(LONG, max_tokens=1).usage.prompt_tokens > 10
    assert ["restricted" in record.getMessage() for record in caplog.records] == [True] * 3


@pytest.mark.server
def test_a_killed_clients_memory_is_removed_by_the_next_client(server: LocalServer) -> None:
    before = left_behind()
    code = (
        "import os, signal; from autoglm_client import Client, SharedMemory\n"
        f"client = Client({server.grpc_url!r}, shared_memory=SharedMemory({server.shared_memory_key!r}, 1000))\n"
        "client.generate('-' * 3000, max_tokens=1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == -signal.SIGKILL
    assert len(left_behind() - before) == 1
    sharing = SharedMemory(server.shared_memory_key, threshold_bytes=1000)
    with Client(server.grpc_url, shared_memory=sharing) as client:
        client.generate(LONG, max_tokens=1)
        assert len(left_behind() - before) == 1
    assert left_behind() == before
