"""`autoglm profile`: figures of a run, its pictures, and the command against a scripted server and the real one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from autoglm_cli import app
from autoglm_cli.commands.profile_view import bar, sparkline
from autoglm_cli.profile.driving import engine_state
from autoglm_cli.profile.figures import STAGES, figures_of, loaded_part, percentile, rate
from autoglm_cli.profile.measuring import measure
from autoglm_cli.profile.page import page
from autoglm_cli.profile.records import EngineState, Host, HostState, Interface, RequestRecord, Run, Sample
from autoglm_cli.profile.report import Profile
from autoglm_cli.profile.svg import draw
from autoglm_cli.profile.workload import built_in
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import CannotConnectError, InvalidRequestError, async_client
from autoglm_client.options import GenerationOptions
from typer.testing import CliRunner, Result

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of

SVG = "{http://www.w3.org/2000/svg}"


def request(number: int, decode_ms: float = 900.0) -> RequestRecord:
    stages = dict.fromkeys(STAGES, 10.0) | {"decode": decode_ms, "queue": 50.0}
    return RequestRecord(0.1 * number, 0.1 * number + 1, 0.1 * number + 0.2, 5, 10, 0, stages, 7.0)


def sample(at: float, *, waiting: int = 0, engine_cpu: float = 0.0) -> Sample:
    host = HostState({"engine": engine_cpu, "client": 0.1 * at}, {"engine": 2**30}, 2 * at, 2**31, 1000, 3000)
    return Sample(at, EngineState(waiting, 4 if waiting else 2, 4), host)


def run_record(*, waiting: int = 0, cores_used: float = 0.5) -> Run:
    samples = tuple(sample(float(at), waiting=waiting, engine_cpu=cores_used * at) for at in range(6))
    host = Host({"engine": 7, "client": 8}, 2.0, 2**33, Interface("lo", is_loopback=True))
    return Run(4, 5.0, 4.0, tuple(request(number) for number in range(10)), samples, host)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.95, 3.85), (1.0, 4.0)])
def test_percentiles_lie_between_the_ordered_values(share: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(expected)


def test_figures_count_what_was_served() -> None:
    run = run_record()
    failed = RequestRecord(0.0, 9.0, error="full")
    figures = figures_of(Run(4, 5.0, 4.0, (*run.requests, failed), run.samples, run.host))
    assert (figures.served, figures.failed) == (10, 1)
    assert (figures.requests_per_second, figures.tokens_per_second) == (2.0, 20.0)
    assert figures.first_token is not None and figures.first_token.p50 == pytest.approx(200)
    assert figures.inter_token is not None and figures.inter_token.p95 == pytest.approx(100)
    shares = {stage.name: stage.share for stage in figures.stages}
    assert list(shares) == list(STAGES) and sum(shares.values()) == pytest.approx(1)
    assert shares["decode"] == pytest.approx(900 / 1000)


def test_a_run_without_answers_has_no_latencies() -> None:
    figures = figures_of(Run(1, 1.0, 0.0, (RequestRecord(0, 1, error="x"),), (), Host()))
    assert figures.total is None and figures.stages == () and figures.requests_per_second == 0


def test_rates_are_differences_over_time_and_the_end_of_a_run_is_left_out() -> None:
    run = run_record(cores_used=1.5)
    assert rate(run.samples, lambda s: s.host.cpu_seconds.get("engine")) == [(float(at), 1.5) for at in range(1, 6)]
    assert [s.at for s in loaded_part(run)] == [0, 1, 2, 3, 4]
    early = Run(4, 5.0, 0.5, run.requests, run.samples, run.host)
    assert loaded_part(early) == run.samples


def test_a_run_is_measured_over_its_loaded_part() -> None:
    run = run_record(waiting=3, cores_used=0.5)
    measured = measure(run, figures_of(run))
    assert measured.cpu_cores == pytest.approx({"engine": 0.5, "client": 0.1, "others": 1.4})
    assert measured.cpu_share == pytest.approx(1.0)
    assert (measured.slots, measured.slots_busy, measured.waiting, measured.blocked_share) == (4, 4, 3, 1)
    assert measured.memory_share == pytest.approx(0.25) and measured.network_share is None
    assert measured.longest_stage == "decode"


def test_the_engines_counters_may_be_missing() -> None:
    assert engine_state({"running": 1}) == EngineState()
    counters: dict[str, object] = {"waiting": 2, "slots_busy": 3, "slots_free": 1, "slots_retained": 4}
    assert engine_state(counters) == EngineState(2, 3, 8)


def test_built_in_prompts_do_not_repeat() -> None:
    asked = built_in(GenerationOptions())
    texts = [str(next(asked).prompt) for _ in range(300)]
    assert len(set(texts)) == 300


@pytest.mark.parametrize(("share", "drawn"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.28, "█▏"), (2.0, "████")])
def test_bars_are_drawn_in_eighths(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


def test_a_sparkline_keeps_its_width_and_holds_the_last_value() -> None:
    assert sparkline([(0.0, 0.0), (1.0, 4.0), (3.0, 8.0)], 4.0, 8.0, 4) == " ▄▄█"
    assert sparkline([(0.0, 0.01)], 4.0, 8.0, 4) == "▁▁▁▁"  # a little is not nothing
    assert sparkline([], 4.0, 8.0, 4) == ""


def test_the_picture_is_whole_and_needs_nothing_else() -> None:
    profile = Profile.of(run_record(waiting=3, cores_used=1.8))
    root = ElementTree.fromstring(draw(profile))
    texts = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "Bottleneck: CPU" in texts
    assert all(name in texts for name in (*STAGES, "slots busy", "requests waiting", "memory", "network (lo)"))
    bars = [float(e.attrib["width"]) for e in root.iter(f"{SVG}rect") if e.attrib.get("height") == "22.0"]
    assert sum(bars) == pytest.approx(960 - 48, abs=1)
    heights = [float(y) for e in root.iter(f"{SVG}polygon") for y in re.findall(r",([\d.]+)", e.attrib["points"])]
    assert heights and max(heights) < float(root.attrib["height"])
    assert "href" not in draw(profile) and "url(" not in draw(profile)


def test_the_page_escapes_what_others_wrote() -> None:
    run = run_record()
    host = Host({"engine": 7, "<b>&": 9}, 2.0, 2**33, Interface("<eth>", is_loopback=False))
    made = page(Profile.of(Run(4, 5.0, 4.0, run.requests, run.samples, host)))
    assert (
        "&lt;eth&gt;" in made
        and "<eth>" not in made
        and "<script" not in made
        and "http://" not in made.replace("http://www.w3.org/2000/svg", "")
    )


def command(*arguments: str, columns: int = 120) -> Result:
    return CliRunner().invoke(app, ["profile", *arguments], env={"COLUMNS": str(columns), "TERM": "dumb"})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeTransport], FakeTransport]:
    def put(transport: FakeTransport) -> FakeTransport:
        monkeypatch.setattr(async_client, "GrpcTransport", lambda address, **_: transport)
        return transport

    return put


Use = Callable[[FakeTransport], FakeTransport]
NOWHERE = ("--url", "127.0.0.1:1")


@pytest.mark.slow
def test_the_command_keeps_the_asked_number_in_flight(use: Use) -> None:
    transport = use(FakeTransport(Script(pause_s=0.05)))  # so much that this client has little to do meanwhile
    result = command(*NOWHERE, "--requests", "12", "-c", "3", "-n", "7", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert (answer["served"], answer["failed"], answer["concurrency"]) == (12, 0, 3)
    assert list(answer["stages"]) == list(STAGES) and answer["stages"]["prefill"]["p50"] == pytest.approx(0.3)
    assert answer["bottleneck"] == "nothing" and "did not ask enough" in answer["advice"]
    assert (len(transport.requests), transport.max_running, transport.aborted) == (12, 3, [])
    assert inputs_of(transport.requests[0])["max_tokens"] == (7).to_bytes(4, "little")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_report_fits_the_terminal(use: Use, columns: int) -> None:
    use(FakeTransport(Script(pause_s=0.05)))
    result = command(*NOWHERE, "--requests", "8", columns=columns)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert all(word in result.stdout for word in (*STAGES, "requests/s", "inter-token latency", "bottleneck: nothing"))


@pytest.mark.slow
def test_a_duration_ends_the_run(use: Use) -> None:
    transport = use(FakeTransport(Script(pause_s=0.005)))
    answer = json.loads(command(*NOWHERE, "--duration", "1.2", "-c", "2", "--json").stdout)
    assert answer["seconds"] >= 1.2 and answer["served"] == len(transport.requests) > 4
    assert len(answer["samples"]) >= 3


def test_prompts_of_a_file_are_repeated_in_turn(use: Use, tmp_path: Path) -> None:
    transport = use(FakeTransport())
    lines, jobs = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("first\n\nsecond\n")
    jobs.write_text('{"text_input": "third", "max_tokens": 3}\n')
    assert command(str(lines), *NOWHERE, "--requests", "3", "-c", "1").exit_code == 0
    assert command(str(jobs), *NOWHERE, "--requests", "1").exit_code == 0
    asked = [json.loads(inputs_of(made)["messages"][4:])[0]["content"] for made in transport.requests[:3]]
    assert asked == ["first", "second", "first"]
    assert inputs_of(transport.requests[3])["text_input"][4:] == b"third"


def test_pictures_are_written(use: Use, tmp_path: Path) -> None:
    use(FakeTransport())
    svg, html = tmp_path / "p.svg", tmp_path / "p.html"
    assert command(*NOWHERE, "--requests", "2", "--svg", str(svg), "--html", str(html)).exit_code == 0
    ElementTree.fromstring(svg.read_text())
    assert html.read_text().startswith("<!doctype html>")


def test_failed_requests_are_counted_and_said(use: Use) -> None:
    use(FakeTransport(Script(errors=[InvalidRequestError("top_p is 0")])))
    result = command(*NOWHERE, "--requests", "4", "-c", "1")
    assert result.exit_code == 1 and "3 requests, 1 failed" in result.stdout and "1 failed: top_p is 0" in result.stdout
    assert result.stderr.strip().endswith("error: 1 of 4 requests failed")


@pytest.mark.parametrize(
    ("content", "words"),
    [("\n\n", "has no prompt"), ("\udcff", "is not UTF-8 at byte 0"), (None, "No such file")],
)
def test_a_bad_file_is_refused_before_anything_is_asked(
    use: Use, tmp_path: Path, content: str | None, words: str
) -> None:
    transport, file = use(FakeTransport()), tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    result = command(str(file), *NOWHERE)
    assert result.exit_code == 1 and words in result.stderr and not transport.requests


def test_without_a_server_the_sentence_says_how_to_get_one() -> None:
    result = command(*NOWHERE)
    assert result.exit_code == 1 and "start one with `autoglm serve`" in result.stderr and result.stdout == ""


def test_a_server_that_goes_away_ends_the_run_with_one_sentence(use: Use) -> None:
    use(FakeTransport(Script(errors=[CannotConnectError("cannot reach it")] * 12)))
    result = command(*NOWHERE, "--requests", "40", "-c", "2")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, errors) == (1, ["error: cannot reach it; start one with `autoglm serve`"])


def test_all_requests_failing_is_one_sentence(use: Use) -> None:
    use(FakeTransport(Script(errors=[InvalidRequestError("max_tokens is 0")] * 2)))
    result = command(*NOWHERE, "--requests", "2")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("error: no request was answered: max_tokens is 0")


@pytest.mark.server
def test_the_real_server_has_stages_processes_and_a_bottleneck(server: LocalServer) -> None:
    result = command("--url", server.grpc_url, "--requests", "96", "-c", "24", "--max-tokens", "64", "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["served"] == 96
    assert all(answer["stages"][name]["p50"] > 0 for name in STAGES if name not in ("embed", "network"))
    assert answer["stages"]["network"]["p95"] > 0  # detokenizing runs beside decoding, so little may be left
    assert sum(stage["share"] for stage in answer["stages"].values()) == pytest.approx(1)
    used = answer["measured"]["cpu_cores"]
    assert {"tritonserver", "tokenizer", "engine", "detokenizer", "client"} <= set(used) and used["engine"] > 0
    assert answer["measured"]["slots"] and max(sample["waiting"] for sample in answer["samples"]) > 0
    assert answer["bottleneck"] in ("CPU", "slots") and answer["advice"]
