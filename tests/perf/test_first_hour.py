"""The first hour on a card, without one: its order, where it ends, its page, and the refusal where there is no GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from autoglm_perf.gpu import first_hour
from autoglm_perf.gpu.first_hour import Outcome, in_the_shell, read_lines, run_steps, write_lines, write_page
from autoglm_perf.gpu.first_hour_page import page
from autoglm_perf.gpu.first_hour_steps import Step, steps
from autoglm_perf.gpu.report import append_jsonl, gpu_machine
from autoglm_perf.gpu.samples import figure

from tests.support.perf.gpu_fakes import BANDWIDTH, HOPPER, FakeDriver, settings, with_driver, with_packages

ROOT = Path(__file__).parents[2]
PLAN = steps("tensorrt", Path("build/first-hour"))


class FakeRun:
    """`failing`: names of steps that end with 1. `lines`: what each says."""

    def __init__(self, *failing: str, lines: tuple[str, ...] = ("fine\n",)) -> None:
        self.failing, self.lines = failing, lines
        self.ran: list[str] = []

    def __call__(self, step: Step) -> tuple[int, list[str]]:
        self.ran.append(step.name)
        return int(step.name in self.failing), list(self.lines)


def hour(run: FakeRun) -> tuple[list[Outcome], list[str]]:
    said: list[str] = []
    return run_steps(PLAN, run, said.append), said


# ---- the order of the steps


def test_steps_run_in_the_order_in_which_they_decide() -> None:
    run = FakeRun()
    outcomes, said = hour(run)
    assert run.ran == [
        "driver",
        "parity",
        "precisions",
        "capacity",
        "batching",
        "vision",
        "cost-short",
        "cost-capacity",
        "cost-length",
        "server",
        "whole",
    ]
    assert all(outcome.status == 0 and not outcome.tail for outcome in outcomes)
    assert said[0].startswith("[1/11] driver, about 1 min: memory, copies, events and graphs by the real driver")
    assert "passed after 0.0 min" in said[1]


@pytest.mark.parametrize("name", ["driver", "parity", "capacity"])
def test_what_decides_ends_the_hour(name: str) -> None:
    run = FakeRun(name)
    outcomes, said = hour(run)
    assert run.ran[-1] == name == outcomes[-1].name
    assert said[-1].startswith("Stopped: n") or said[-1].startswith("Stopped: the default precision")


@pytest.mark.parametrize("name", ["precisions", "batching", "vision", "cost-short", "server", "whole"])
def test_what_decides_nothing_lets_the_rest_go_on(name: str) -> None:
    run = FakeRun(name)
    outcomes, _ = hour(run)
    assert len(run.ran) == 11
    assert [outcome.name for outcome in outcomes if outcome.status] == [name]


def test_what_must_not_be_missed_is_kept() -> None:
    warning = "WARNING decode steps are enqueued kernel by kernel, without a CUDA graph: no\n"
    outcomes, _ = hour(FakeRun("whole", lines=("a\n", warning, warning, *(f"{i}\n" for i in range(40)))))
    assert outcomes[0].noticed == [warning.strip()]
    assert outcomes[-1].tail == [str(i) for i in range(25, 40)]


def test_each_command_is_there() -> None:
    for step in PLAN:
        for word in step.command:
            assert not word.startswith("tests/") or (ROOT / word).is_file(), word
    by_name = {step.name: " ".join(step.command) for step in PLAN}
    assert "--max-length 25600 --past 512 --artifact build/first-hour/layers-25k" in by_name["cost-capacity"]
    assert "--max-length 25600 --past 24000 --artifact build/first-hour/layers-25k" in by_name["cost-length"]
    assert "--no-baseline" in by_name["cost-short"] and "--no-baseline" not in by_name["whole"]
    assert all("--precision bf16" in command for command in by_name.values() if "gpu_bench" in command)


def test_a_step_is_a_process_whose_output_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, sys; print('said', os.environ['AUTOGLM_GPU_RECORD']); print('failed', file=sys.stderr); sys.exit(3)"
    )
    status, lines = in_the_shell(tmp_path)(Step("one", "", 1, (sys.executable, "-c", code)))
    assert status == 3
    assert sorted(lines) == ["failed\n", f"said {tmp_path / 'found.jsonl'}\n"]
    assert (tmp_path / "one.log").read_text() == "".join(lines)
    assert "        failed\n" in capsys.readouterr().out


# ---- the page


SCREEN = {
    "kind": "vision",
    "precision": "bf16",
    "patches": 13_416,
    "bound": 0.05,
    "median_ms": 123.4,
    "first_ms": 2000.0,
    "build_seconds": 80.0,
    "plan_bytes": 1_800_000_000,
}


def recorded(folder: Path) -> None:
    """As the steps of an hour leave it."""
    noticed, tails = {"parity": ["without a CUDA graph: no"]}, {"precisions": ["1 failed"]}
    outcomes = [
        Outcome(step.name, int(step.name in tails), 61.0, noticed.get(step.name, []), tails.get(step.name, []))
        for step in PLAN
    ]
    write_lines(folder / "steps.jsonl", map(asdict, outcomes))
    right = {"decode": {"1": 0.004, "8191": 0.006}, "prefill": {"7": 0.005}}
    common = {"kind": "capacity", "precision": "bf16", "bound": 0.05}
    write_lines(
        folder / "found.jsonl",
        [
            {**common, "capacity": 8192, "form": "fused", "errors": right},
            {
                **common,
                "capacity": 25_600,
                "form": "fused",
                "errors": {**right, "decode": {"1": 0.1, "7": float("nan")}},
            },
            {**common, "capacity": 25_600, "form": "decomposed", "failure": "no kernel | of any"},
            {**SCREEN, "error": 0.012},
            {**SCREEN, "patches": 4, "error": float("nan")},
        ],
    )
    here = gpu_machine(HOPPER, BANDWIDTH)
    for max_length, past, shift in ((2048, 512, 0.0), (25_600, 512, 0.001), (25_600, 24_000, 0.002)):
        figures = [figure("autoglm tensorrt", "decode", n, n, [0.004 + shift], floor=2.0, error=0.01) for n in (1, 16)]
        made = settings(max_length=max_length, past=past, baseline=False)
        append_jsonl(folder / "gpu.jsonl", here, as_json(made), figures)
    whole = [
        figure("autoglm tensorrt", "decode", 1, 1, [0.0055], floor=4.4, error=0.02),
        figure("autoglm tensorrt", "prefill", 1, 1024, [0.05], error=0.01),
        figure("transformers", "decode", 1, 1, [0.011], floor=4.4),
    ]
    append_jsonl(folder / "gpu.jsonl", here, as_json(settings()), whole)


def as_json(made: Any) -> dict[str, Any]:
    from autoglm_perf.gpu.bench import _as_json

    found: dict[str, Any] = json.loads(json.dumps(_as_json(made)))
    return found


MACHINE = {
    "name": "NVIDIA H100",
    "capability": "9.0",
    "memory_bytes": 80 * 10**9,
    "driver": "13.0",
    "runtime": "tensorrt",
    "packages": {"tensorrt": "11.4.0.106", "numpy": "2.4.0"},
}


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    recorded(tmp_path)
    write_page(tmp_path, PLAN, tmp_path / "docs" / "page.md", MACHINE)
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "NVIDIA H100, compute capability 9.0, 80 GB, driver for CUDA 13.0, runtime tensorrt." in text
    assert "numpy 2.4.0, tensorrt 11.4.0.106." in text
    assert "Memory: 1,000 GB/s read, 900 GB/s copied" in text
    assert re.search(r"\| precisions \|.*\| 4 \| 1\.0 \| failed \(1\) \|", text)
    assert "precisions ended with\n\n```\n1 failed\n```" in text
    assert "- parity: `without a CUDA graph: no`" in text
    assert "| 8,192 | bf16 | fused | 0.006 (at 8191 tokens) | 0.005 (at 7 tokens) | right |" in text
    assert "| 25,600 | bf16 | fused | nan (at 7 tokens) | 0.005 (at 7 tokens) | **wrong** (allowed 0.05) |" in text
    assert r"| 25,600 | bf16 | decomposed | - | - | not built: no kernel \| of any |" in text
    assert "| bf16 | 13,416 | 123.4 | 2000.0 | 0.012 | right | 80 | 1.80 |" in text
    assert "| bf16 | 4 | 123.4 | 2000.0 | nan | **wrong** (allowed 0.05) | 80 | 1.80 |" in text
    assert (
        "| batch | slots of 2,048, 512 tokens | slots of 25,600, 512 tokens | slots of 25,600, 24,000 tokens |" in text
    )
    assert "| 16 | 4.00 (2.00) | 5.00 (2.50) | 6.00 (3.00) |" in text
    assert "| decode | 1 | 5.50 | 5.50 ... 5.50 | 4.40 | 1.25 | 182 | 0.02 | 11.00 | 2.00 |" in text
    assert "| prefill | 1 | 50.00 | 50.00 ... 50.00 | - | - | 20,480 | 0.01 | - | - |" in text


def test_an_hour_that_ended_early_has_a_page_too() -> None:
    outcomes = [asdict(Outcome("driver", 1, 30.0, [], ["NO rows are copied"]))]
    text = page(MACHINE, PLAN, outcomes, [], [])
    assert "**Stopped:** nothing that follows can be right" in text
    assert text.count("| not run |") == 10
    for heading in ("Parity by capacity", "The vision tower", "Cost by", "whole model"):
        assert heading not in text


# ---- the command


def test_without_a_gpu_it_is_one_sentence() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "autoglm_perf.gpu.first_hour"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: .*GPU.*\n", done.stderr)


def test_the_plan_needs_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    first_hour.main(plan=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "11 steps, about 72 min in all:"
    assert "  parity, 2 min: tiny GLM-4 in bf16" in lines[2] and "where it fails, the hour ends" in lines[2]


def test_a_step_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(first_hour.typer.Exit):
        first_hour.main(only="driver,abacus")
    assert capsys.readouterr().err == (
        f"Error: there is no step 'abacus'; there are {', '.join(step.name for step in PLAN)}\n"
    )


@pytest.mark.parametrize("failing", [(), ("parity",)])
def test_an_hour_from_its_begin_to_its_page(
    failing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_driver(monkeypatch, FakeDriver())
    with_packages(monkeypatch, "tensorrt")
    run = FakeRun(*failing)
    monkeypatch.setattr(first_hour, "in_the_shell", lambda folder: run)
    (tmp_path / "found.jsonl").write_text("{}\n")  # of another hour
    with pytest.raises(first_hour.typer.Exit) as caught:
        first_hour.main(folder=tmp_path, write=tmp_path / "page.md")
    assert caught.value.exit_code == len(failing)
    assert [row["name"] for row in read_lines(tmp_path / "steps.jsonl")] == run.ran
    assert "NVIDIA L4, compute capability 8.9" in (tmp_path / "page.md").read_text()


def test_onnx_runtime_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_driver(monkeypatch, FakeDriver())
    with_packages(monkeypatch)
    with pytest.raises(first_hour.typer.Exit):
        first_hour.main()
    assert re.fullmatch(r"Error: .*package of tensorrt is not installed.*\n", capsys.readouterr().err)
