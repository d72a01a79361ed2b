"""While a real server encodes a large screen: whoever leaves ends it, nobody else is disturbed, and the process that
encodes may stand still or die."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from autoglm_client import LocalServer
from autoglm_export.export import export

from tests.conftest import MODEL_REPOSITORY
from tests.support.export.tiny_glm4v import image_file, write_tiny_glm4v
from tests.support.server.raw_grpc import Answer, Stream, tensor

pytestmark = pytest.mark.server
LARGE = {"size": {"shortest_edge": 2 * 28 * 28 * 2, "longest_edge": 2 * 28 * 28 * 2000}}
SLOW = image_file(1008, 1008)  # 5,184 patches: seconds of the tower's attention
SMALL = image_file(60, 90)
SECONDS = 120.0  # nobody waits longer


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm4v")
    write_tiny_glm4v(
        folder / "checkpoint",
        processor=LARGE,
        vision={"depth": 12, "hidden_size": 64},
        text={"max_position_embeddings": 4096},
    )
    export(folder / "checkpoint", folder / "artifact", runtime="onnx", precision="fp32")
    return folder / "artifact"


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[LocalServer]:
    with LocalServer(MODEL_REPOSITORY, artifact=artifact) as made:
        yield made


@pytest.fixture
def stream(server: LocalServer) -> Iterator[Stream]:
    with Stream(server.grpc_url) as made:
        yield made


def ask(stream: Stream, *images: bytes, **options: object) -> str:
    question = [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": "What?"}]}]
    given = {"max_tokens": 4, "stream": False, "cache": "bypass", **options}
    inputs = [tensor("messages", json.dumps(question).encode()), tensor("images", list(images), "BYTES")]
    return stream.send([*inputs, *(tensor(name, value) for name, value in given.items())])


def answer(stream: Stream, *images: bytes, **options: object) -> Answer:
    return stream.finish(ask(stream, *images, **options), SECONDS)


def num_encoded(server: LocalServer, more_than: tuple[int, int] | None = None) -> tuple[int, int]:
    """How often the tower came to its end, wanted or not, and how many images' features were kept. The engine publishes
    it about once a second; `more_than`: wait until there is more of both."""
    give_up_at = time.monotonic() + SECONDS
    while True:
        with urllib.request.urlopen(server.metrics_url, timeout=SECONDS) as page:
            lines = page.read().decode().splitlines()
        tower, kept = (count_of(lines, f"autoglm_image_{name}_time_seconds") for name in ("tower", "encode"))
        if more_than is None or (tower > more_than[0] and kept > more_than[1]):
            return tower, kept
        assert time.monotonic() < give_up_at, "nothing more is encoded"
        time.sleep(0.1)


def count_of(lines: list[str], histogram: str) -> int:
    found = [line for line in lines if line.startswith(f"{histogram}_count")]
    return round(sum(float(line.split()[-1]) for line in found))


def vision_process(server: LocalServer) -> psutil.Process:
    children = psutil.Process(server.pid).children(recursive=True)
    (found,) = [child for child in children if "/vision/1/model.py" in " ".join(child.cmdline())]
    return found


def wait_until_it_encodes(server: LocalServer) -> None:
    """The vision model's process computes."""
    process, give_up_at = vision_process(server), time.monotonic() + SECONDS
    began = sum(process.cpu_times()[:2])
    while sum(process.cpu_times()[:2]) < began + 0.2:
        assert time.monotonic() < give_up_at, "nothing is encoded"
        time.sleep(0.01)


def test_who_leaves_while_its_screen_is_encoded_ends_that(server: LocalServer, stream: Stream) -> None:
    """The tower's end is counted also where nobody wants its features: the slow screen's never comes."""
    small = image_file(60, 90, seed=1)
    before = num_encoded(server)
    slow = ask(stream, SLOW)
    wait_until_it_encodes(server)
    with Stream(server.grpc_url) as control:
        assert control.control(cancel=[slow]) == {"cancelled": 1}
    after = ask(stream, small)
    assert stream.finish(slow, SECONDS).finish_reason == "cancelled"
    assert stream.finish(after, SECONDS).finish_reason == "length"
    assert num_encoded(server, more_than=before) == (before[0] + 1, before[1] + 1)
    assert answer(stream, small).text == stream.answers[after].text


@contextmanager
def standing_still(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def test_a_vision_process_that_stands_still_holds_up_nobody_but_screens(server: LocalServer, stream: Stream) -> None:
    expected = answer(stream, SMALL).text
    other = image_file(60, 90, seed=3)
    with standing_still(vision_process(server)):
        late, waiting = ask(stream, other, deadline_ms=300), ask(stream, other)
        text = stream.generate("Hello", max_tokens=4, ignore_eos=True)
        assert stream.finish(late, SECONDS).finish_reason == "deadline"
        assert stream.finish(text, SECONDS).finish_reason == "length"
        assert waiting not in stream.ended
    assert stream.finish(waiting, SECONDS).finish_reason == "length"
    assert answer(stream, SMALL).text == expected


def with_header(width: int, height: int) -> bytes:
    """Whose checksum is right."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + SMALL[24:29]
    return SMALL[:12] + header + zlib.crc32(header).to_bytes(4, "big") + SMALL[33:]


def many_scans(file: bytes) -> bytes:
    at = file.rindex(b"\xff\xda")
    return file[:at] + file[at:-2] * 101 + b"\xff\xd9"


HOSTILE = {
    "header": ([with_header(100_000, 100_000)], "has too many pixels; an image may have"),
    "zero": ([with_header(0, 5)], "of none of the formats"),
    "another size than its pixels": ([with_header(91, 60)], "cannot be read"),
    "scans": ([many_scans(image_file(60, 60, kind="JPEG"))], "more than 100 scans"),
    "cut": ([image_file(400, 400)[:-5000]], "cannot be read"),
    "cut JPEG": ([image_file(400, 400, kind="JPEG")[:-5000]], "cannot be read"),
    "URL": ([b"http://127.0.0.1:1/screen.png"], "no URL is fetched"),
    "ten, which the slot cannot hold": ([SLOW] * 10, "tokens"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_image_gets_one_sentence_and_the_next_one_an_answer(stream: Stream, what: str) -> None:
    images, sentence = HOSTILE[what]
    refused = answer(stream, *images)
    assert re.search(sentence, refused.error), refused.error
    assert "Traceback" not in refused.error and "\n" not in refused.error and len(refused.error) < 500
    assert answer(stream, SMALL).finish_reason == "length"


def test_a_vision_process_that_is_killed_ends_the_server_and_who_waits_is_told(artifact: Path) -> None:
    with LocalServer(MODEL_REPOSITORY, artifact=artifact) as made, Stream(made.grpc_url) as stream:
        assert answer(stream, SMALL).finish_reason == "length"
        slow = ask(stream, SLOW)
        wait_until_it_encodes(made)
        os.kill(vision_process(made).pid, signal.SIGKILL)
        said = stream.finish(slow, SECONDS).error
        assert said and "Traceback" not in said and "\n" not in said
        give_up_at = time.monotonic() + SECONDS
        while made.is_alive():
            assert time.monotonic() < give_up_at, "the server goes on without its vision model"
            time.sleep(0.1)
