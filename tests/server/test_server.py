"""The real tritonserver with the real model, over its own protocols."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client.exceptions import LocalServerError

from tests.conftest import MODEL_REPOSITORY
from tests.support.server.processes import shared_memory, wait_for_end
from tests.support.server.raw_grpc import Answer, Stream, tensor

pytestmark = pytest.mark.server
PATIENCE_SECONDS = 120.0
QUESTION = json.dumps([{"role": "user", "content": "What is the capital of Japan?"}])


@pytest.fixture
def stream(server: LocalServer) -> Iterator[Stream]:
    with Stream(server.grpc_url) as made:
        yield made


def post(server: LocalServer, verb: str, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", f"/v2/models/autoglm/{verb}", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def generate(server: LocalServer, **fields: Any) -> tuple[int, dict[str, Any]]:
    status, text = post(server, "generate", json.dumps(fields).encode())
    return status, json.loads(text)


def wait_for(condition: Callable[[], bool]) -> float:
    """How long it took. Fails after a time that says nothing about how fast it should be."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < PATIENCE_SECONDS, f"it took more than {PATIENCE_SECONDS:g} s"
        time.sleep(0.02)
    return time.monotonic() - begin


def idle(stream: Stream) -> bool:
    stats = stream.control(stats=True)
    return bool(stats["running"] == stats["waiting"] == stats["slots_busy"] == 0)


def metric(server: LocalServer, name: str) -> float:
    text = urllib.request.urlopen(server.metrics_url, timeout=60).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


# ---- answers


def test_generate_answers_right(server: LocalServer) -> None:
    status, answer = generate(server, messages=QUESTION, max_tokens=20)
    assert status == 200
    assert answer["text_output"] == "The capital of Japan is Tokyo."
    assert answer["finish_reason"] == "stop"
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (37, 8)
    assert len(answer["stage_times"]) == 6


def test_the_capital_of_france(server: LocalServer) -> None:
    """In fp32 the first token leads by 0.08 only, so this asks much of the quantisation."""
    messages = json.dumps([{"role": "user", "content": "What is the capital of France?"}])
    assert "Paris" in generate(server, messages=messages, max_tokens=40)[1]["text_output"]


def test_generate_stream_sends_pieces(server: LocalServer) -> None:
    body = json.dumps({"messages": QUESTION, "max_tokens": 20, "stream": True}).encode()
    status, text = post(server, "generate_stream", body)
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert status == 200
    assert len(events) > 1
    assert "".join(event["text_output"] for event in events) == "The capital of Japan is Tokyo."
    assert [event["finish_reason"] for event in events if event["finish_reason"]] == ["stop"]
    assert events[-1]["finish_reason"] == "stop"


def test_grpc_streams_and_answers_at_once_alike(stream: Stream) -> None:
    prompt = {"text": "The three primary colours are", "max_tokens": 40}
    stream.finish(stream.generate(**{**prompt, "max_tokens": 1}))  # so that both find the prompt in a slot
    in_pieces = stream.finish(stream.generate(**prompt))
    at_once = stream.finish(stream.generate(**prompt, stream=False))
    assert (in_pieces.text, in_pieces.finish_reason) == (at_once.text, at_once.finish_reason)
    assert at_once.num_responses == 1
    assert in_pieces.num_responses > 3
    assert in_pieces.last["completion_tokens"].item() == at_once.last["completion_tokens"].item()


@pytest.mark.parametrize("text", ["请用中文介绍一下北京。", "Repeat: 👩‍👩‍👧 🏳️‍🌈 🎉"])
def test_no_character_is_broken_in_a_stream(stream: Stream, text: str) -> None:
    """Sampled hot, so that all kinds of bytes come out. The prompt is in a slot before: both compute the same then."""
    options = {"max_tokens": 60, "temperature": 1.5, "seed": 7}
    stream.finish(stream.generate(text, max_tokens=1))
    in_pieces = stream.finish(stream.generate(text, **options))
    at_once = stream.finish(stream.generate(text, **options, stream=False))
    assert in_pieces.text == at_once.text


def test_stop_strings_end_the_text(stream: Stream) -> None:
    whole = stream.finish(stream.generate("Count: one, two, three,", max_tokens=24))
    stop = whole.text[5:9]
    answer = stream.finish(stream.generate("Count: one, two, three,", max_tokens=24, stop=[b"@@@", stop.encode()]))
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason == "stop"


def test_logprobs_come_with_the_tokens(stream: Stream) -> None:
    answer = stream.finish(stream.generate("2 + 2 =", max_tokens=1, logprobs=3, stream=False))
    (entry,) = json.loads(answer.last["logprobs_output"].item())
    assert len(entry["top"]) == 3
    assert entry["token"] == answer.text
    assert entry["logprob"] == entry["top"][0]["logprob"] <= 0


def test_a_deadline_ends_a_request(stream: Stream) -> None:
    answer = stream.finish(stream.generate(max_tokens=900, ignore_eos=True, deadline_ms=100))
    assert answer.finish_reason == "deadline"


def test_a_cancel_ends_a_request_and_its_stream(stream: Stream) -> None:
    request_id = stream.generate(max_tokens=900, ignore_eos=True)
    while stream.next() != request_id:
        pass
    assert stream.control(cancel=[request_id]) == {"cancelled": 1}
    assert stream.finish(request_id).finish_reason == "cancelled"
    assert idle(stream)


def test_a_cancel_may_overtake_its_request(stream: Stream) -> None:
    request_id = stream.generate("word " * 500, max_tokens=400, ignore_eos=True)
    stream.control(cancel=[request_id])
    assert stream.finish(request_id).finish_reason == "cancelled"


def test_long_prompts_of_one_tenant_hold_up_nobody_elses(server: LocalServer, stream: Stream) -> None:
    """Each of them takes 0.2 s to encode, and is then refused."""
    long = json.dumps([{"role": "user", "content": ("\n" + " " * 80) * 1020}])
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(generate, server, messages=long, tenant="long") for _ in range(8)]
        time.sleep(0.2)  # they are there first
        short = [stream.generate("Once", tenant=b"short", max_tokens=2)]
        short.append(stream.send([tensor("messages", QUESTION.encode()), tensor("max_tokens", 2)]))
        for request_id in short:
            assert stream.finish(request_id).finish_reason == "length"
        assert sum(future.done() for future in held) < 5
        assert {future.result()[0] for future in held} == {400}
    assert all("the model takes 1 to 1023" in future.result()[1]["error"] for future in held)


def test_a_late_cancel_does_not_end_the_next_request_of_that_id(stream: Stream) -> None:
    request_id = stream.generate(max_tokens=2, ignore_eos=True)
    assert stream.finish(request_id).finish_reason == "length"
    assert stream.control(cancel=[request_id]) == {"cancelled": 0}
    stream.generate(request_id=request_id, max_tokens=3, ignore_eos=True)
    assert stream.finish(request_id).finish_reason == "length"


def test_a_wrong_control_request_is_refused(stream: Stream) -> None:
    for text in (b"", b"[]", b'{"cancel": "x"}', b'{"cancel": [1]}', b'{"stats": true, "x": 1}', b"\xff"):
        answer = stream.finish(stream.send([tensor("control", text)], model="engine"))
        assert "INVALID_ARG: control " in answer.error


def test_metrics_are_published(server: LocalServer, stream: Stream) -> None:
    stream.finish(stream.generate(max_tokens=5, ignore_eos=True))
    for name in ("tokens_in", "tokens_out"):
        counted = stream.control(stats=True)[name]
        wait_for(lambda name=name, counted=counted: metric(server, f"autoglm_{name}_total") == counted)  # type: ignore[misc]
    assert metric(server, "autoglm_time_to_first_token_seconds_count") >= 1
    assert metric(server, "autoglm_inter_token_latency_seconds_count") >= 4
    assert metric(server, "autoglm_slots") == 16
    assert metric(server, 'autoglm_requests_total{finish_reason="length",model="autoglm",version="1"}') >= 1


def test_control_apis_are_closed(server: LocalServer) -> None:
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=60)
    with contextlib.closing(connection):
        for method, path in (("POST", "/v2/repository/index"), ("GET", "/v2/logging"), ("GET", "/v2/trace/setting")):
            connection.request(method, path)
            response = connection.getresponse()
            assert (response.status, b"restricted" in response.read()) == (403, True), path


# ---- bad input, while fifteen others go on


BAD_TENSORS: list[tuple[str, list[Any], str]] = [
    ("empty prompt", [tensor("text_input", b"")], "INVALID_ARG: text_input is empty"),
    ("too long", [tensor("text_input", b"word " * 2000)], "INVALID_ARG: text_input has "),
    ("invalid UTF-8", [tensor("text_input", b"ab\xff")], "not valid UTF-8: byte 0xff at 2"),
    ("malformed messages", [tensor("messages", b'[{"role": "user"')], "INVALID_ARG: messages is not JSON"),
    ("both prompts", [tensor("messages", b"[]"), tensor("text_input", b"x")], "only one of them; both are set"),
    ("no prompt", [tensor("max_tokens", 5)], "only one of them; neither is set"),
    (
        "negative temperature",
        [tensor("text_input", b"x"), tensor("temperature", -1.0)],
        "temperature is -1; it must be",
    ),
    (
        "NaN temperature",
        [tensor("text_input", b"x"), tensor("temperature", float("nan"))],
        "temperature is nan; it must",
    ),
    ("top_p 0", [tensor("text_input", b"x"), tensor("top_p", 0.0)], "top_p is 0; it must be above 0 and at most 1"),
    (
        "10,000 stops",
        [tensor("text_input", b"x"), tensor("stop", [b"x"] * 10_000)],
        "stop has 10000 strings; at most 16",
    ),
    (
        "max_tokens 0",
        [tensor("text_input", b"x"), tensor("max_tokens", 0)],
        "max_tokens is 0; it must be between 1 and",
    ),
    (
        "max_tokens 1e9",
        [tensor("text_input", b"x"), tensor("max_tokens", 10**9)],
        "max_tokens is 1000000000; it must be",
    ),
    ("wrong dtype", [tensor("text_input", b"x"), tensor("max_tokens", 5, dtype="INT64")], "data-type is 'INT64'"),
    (
        "wrong shape",
        [tensor("text_input", b"x"), tensor("max_tokens", [5, 6])],
        "unexpected shape for input 'max_tokens'",
    ),
    ("batch of two", [tensor("text_input", [b"x", b"y"], shape=[2, 1])], "batch-size must be <= 1 for 'autoglm'"),
    ("5 MB", [tensor("text_input", b"x" * 5_000_000)], "text_input has 5000000 bytes, which cannot fit"),
    ("50 MB", [tensor("text_input", b"x" * 50_000_000)], "Failed to increase the shared memory pool size"),
    ("unknown tensor", [tensor("text_input", b"x"), tensor("heat", 1.0, dtype="FP32")], "heat"),
]


def keep_asking(healthy: Stream, is_over: threading.Event) -> list[Answer]:
    """Fifteen stories at a time until it is over, each to its end."""
    numbers, answers = itertools.count(), list[Answer]()

    def ask() -> str:
        return healthy.generate(f"Tell me a story about the number {next(numbers)}.", max_tokens=100, ignore_eos=True)

    asked = deque(ask() for _ in range(15))
    while asked:
        answers.append(healthy.finish(asked.popleft()))
        if not is_over.is_set():
            asked.append(ask())
    return answers


def test_bad_input_is_answered_and_disturbs_nobody(server: LocalServer) -> None:
    """Each on a stream of its own, since Triton's own refusals do not always name the request they belong to."""
    is_over = threading.Event()
    with Stream(server.grpc_url) as healthy, Stream(server.grpc_url) as bad, ThreadPoolExecutor(1) as thread:
        asking = thread.submit(keep_asking, healthy, is_over)
        try:
            wait_for(lambda: bool(bad.control(stats=True)["running"] >= 10))
            for name, inputs, sentence in BAD_TENSORS:
                answer = bad.finish(bad.send(inputs))
                assert sentence in answer.error, name
                assert "Traceback" not in answer.error, name
                assert answer.num_responses == 0, name
            answer = bad.finish(bad.send([tensor("text_input", b"x")], temprature="1"))
            assert "unknown option temprature; the nearest is temperature; the options are text_input" in answer.error
            wait_for(lambda: bool(bad.control(stats=True)["running"] >= 10))
        finally:
            is_over.set()
        answers = asking.result()
    assert [answer.error for answer in answers] == [""] * len(answers)
    assert [answer.last["completion_tokens"].item() for answer in answers] == [100] * len(answers)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b'{"text_input": "x", "temprature": 1}', 400, "unknown option temprature"),
        (b'{"text_input": "x", "temperature": NaN}', 400, "temperature is nan"),
        (b'{"text_input": ["x", "y"]}', 400, "batch-size must be <= 1 for 'autoglm'"),
        (b"{}", 400, "request has 0 inputs"),
        (b'{"text_input": "x", "max_tokens": "many"}', 500, "Unable to parse 'data'"),  # Triton's own words and status
        (b"{", 500, "failed to parse the request JSON"),
    ],
)
def test_bad_json_is_answered(server: LocalServer, body: bytes, status: int, sentence: str) -> None:
    answered, text = post(server, "generate", body)
    assert (answered, sentence in text) == (status, True), text


def test_forged_messages_between_the_steps_harm_nobody(server: LocalServer) -> None:
    with Stream(server.grpc_url) as healthy, Stream(server.grpc_url) as bad:
        request_id = healthy.generate(max_tokens=60, ignore_eos=True)
        for inputs, model in (
            ([tensor("event", list(b"{}"), dtype="UINT8")], "detokenizer"),
            ([tensor("token_ids", [1], "INT32"), tensor("request", list(b"[]"), "UINT8")], "engine"),
            ([tensor("token_ids", [1], "INT32")], "engine"),
        ):
            assert "INVALID_ARG" in bad.finish(bad.send(inputs, model=model)).error
        assert healthy.finish(request_id).last["completion_tokens"].item() == 60


# ---- clients that vanish


def test_killed_processes_leave_no_slot_behind(server: LocalServer) -> None:
    command = [
        sys.executable,
        str(Path(__file__).parent.parent / "support" / "server" / "raw_grpc.py"),
        server.grpc_url,
        "10",
    ]

    def ten_killed_processes() -> None:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            family = [psutil.Process(parent.pid)]
            try:
                assert parent.stdout is not None
                started = [int(parent.stdout.readline()) for _ in range(10)]
                family = [psutil.Process(pid) for pid in started]
            finally:
                for process in family:
                    process.send_signal(signal.SIGKILL)

    check_vanishing(server, ten_killed_processes)


@pytest.mark.parametrize("asked", [{"stream": True}, {"stream": False, "heartbeat_ms": 100}], ids=["stream", "whole"])
def test_cut_connections_leave_no_slot_behind(server: LocalServer, asked: dict[str, object]) -> None:
    def ten_cut_connections() -> None:
        for connection in [open_stream(server, asked) for _ in range(10)]:
            connection.close()

    check_vanishing(server, ten_cut_connections)


def check_vanishing(server: LocalServer, vanish: Callable[[], None]) -> None:
    """Five times ten clients vanish, beside four healthy streams: their slots are free long before their answers would
    have ended, and the healthy ones never notice."""
    with Stream(server.grpc_url) as stream, Stream(server.grpc_url) as control:
        stories = [f"Story {uuid4()}:" for _ in range(4)]  # which no cache has
        tokens_before = control.control(stats=True)["tokens_out"]
        healthy = [stream.generate(story, max_tokens=900, ignore_eos=True) for story in stories]
        times, beside = [], []
        for _ in range(5):
            vanish()
            times.append(wait_for(lambda: bool(control.control(stats=True)["running"] <= len(healthy))))
            beside.append(control.control(stats=True)["running"])
        answers = [stream.finish(request_id) for request_id in healthy]
        assert [answer.last["completion_tokens"].item() for answer in answers] == [900] * len(healthy)
        assert beside[0] == len(healthy), "the healthy streams were over before anybody vanished"
        wait_for(lambda: idle(control))
        wasted = control.control(stats=True)["tokens_out"] - tokens_before - 900 * len(healthy)
        assert wasted < 5 * 10 * 900 / 2, f"{wasted} tokens for nobody"
        print(f"slots were free after {', '.join(f'{seconds:.2f}' for seconds in times)} s")


def open_stream(server: LocalServer, asked: dict[str, object]) -> socket.socket:
    """A raw connection on which something of an endless answer has come, if only a heartbeat."""
    connection = socket.create_connection((server.host, server.http_port), timeout=300)
    body = json.dumps({"text_input": "Once", **asked, "max_tokens": 900, "ignore_eos": True})
    connection.sendall(
        (
            f"POST /v2/models/autoglm/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
    )
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    return connection


# ---- servers of their own


def test_a_full_queue_refuses_at_once_and_loses_nothing(artifact: Path, tmp_path: Path) -> None:
    log, env = tmp_path / "server.log", {"AUTOGLM_MAX_QUEUE": "4"}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env, log_file=log) as server:
        with Stream(server.grpc_url) as busy:
            running = []
            with Stream(server.grpc_url) as control:
                for count in (4, 8, 12, 16):
                    running += [busy.generate(f"Story {count - i}:", max_tokens=900, ignore_eos=True) for i in range(4)]
                    wait_for(lambda n=count: bool(control.control(stats=True)["running"] == n))  # type: ignore[misc]
            queued = [busy.generate(f"Tale {i}:", max_tokens=10, ignore_eos=True) for i in range(4)]
            with Stream(server.grpc_url) as control:
                wait_for(lambda: bool(control.control(stats=True)["waiting"] == 4))
                status, answer = generate(server, text_input="one more")
                stats = control.control(stats=True)
                assert (stats["running"], stats["waiting"]) == (16, 4), "it was refused after it had waited"
                assert (status, "UNAVAILABLE: 4 requests wait already" in answer["error"]) == (400, True)
                assert control.control(cancel=running) == {"cancelled": 16}  # they would take long
            ended = [busy.finish(request_id) for request_id in running + queued]
        assert [answer.finish_reason for answer in ended] == ["cancelled"] * 16 + ["length"] * 4
        assert [answer.last["completion_tokens"].item() for answer in ended[16:]] == [10] * 4
        server.stop()
        assert not re.search(r"has \d+ in-flight inferences", log.read_text(errors="replace"))


def test_a_dead_engine_is_noticed(artifact: Path) -> None:
    with LocalServer(MODEL_REPOSITORY, artifact=artifact) as server:
        assert server.is_healthy()
        stream = Stream(server.grpc_url)
        request_id = stream.generate(max_tokens=900, ignore_eos=True)
        stream.next()
        os.kill(stub_of(server, "engine"), signal.SIGKILL)
        assert not server.is_healthy()
        with pytest.raises(LocalServerError, match="the process of the model engine died"):
            server.wait()
        wait_for(lambda: not server.is_ready())  # what anybody sees over HTTP
        assert "Socket closed" in stream.finish(request_id).error
        wait_for(lambda: not server.is_alive())
        with pytest.raises(LocalServerError, match="the server ended with exit code -9: the engine's process died"):
            server.wait()


def test_nothing_is_left_behind(artifact: Path) -> None:
    with LocalServer(MODEL_REPOSITORY, artifact=artifact) as server:
        with Stream(server.grpc_url) as stream:
            stream.finish(stream.generate(max_tokens=3))
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        made = shared_memory(*family)
        assert len(made) >= 4  # the board, and a region a model
        server.stop()
    assert not any(path.exists() for path in made)
    wait_for_end(*family)


def stub_of(server: LocalServer, model: str) -> int:
    children = psutil.Process(server.pid).children(recursive=True)
    (stub,) = [child.pid for child in children if f"/{model}/1/model.py" in " ".join(child.cmdline())]
    return stub


def test_a_missing_artifact_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError) as failure:
        LocalServer(MODEL_REPOSITORY, artifact=tmp_path / "none").__enter__()
    message = str(failure.value)
    assert "no artifact at" in message
    assert "run `autoglm export`" in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_the_models_run_the_engine_of_their_own_repository(tmp_path: Path) -> None:
    """Whatever other copy of it is installed."""
    repository = tmp_path / "model_repository"
    shutil.copytree(MODEL_REPOSITORY, repository, ignore=shutil.ignore_patterns("artifact", "__pycache__"))
    (repository / "engine" / "1" / "autoglm_engine" / "__init__.py").write_text("raise ImportError('its own engine')")
    with pytest.raises(LocalServerError, match="its own engine"):
        LocalServer(repository, artifact=tmp_path).__enter__()


def test_the_server_dies_with_its_parent(artifact: Path) -> None:
    script = (
        "import sys, time; from autoglm_cli.server.local_server import LocalServer\n"
        "server = LocalServer(sys.argv[1], artifact=sys.argv[2]); server.start(); server.wait_ready()\n"
        "print(server.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(MODEL_REPOSITORY), str(artifact)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    family = [server, *server.children(recursive=True)]
    parent.kill()
    parent.communicate()
    wait_for_end(*family)
