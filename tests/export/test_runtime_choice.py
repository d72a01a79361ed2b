"""`--runtime auto`: what is offered, which is taken, and what is told of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from autoglm_cli import app
from autoglm_cli.commands.runtime_choice import choice_line
from autoglm_engine.manifest import Manifest
from autoglm_export import export as exporting
from autoglm_export import runtimes as lowering
from autoglm_export.artifact import Options
from autoglm_export.auto_runtime import choice as runtime_choice
from autoglm_export.auto_runtime.choice import CANDIDATES, Candidates, candidates, choose
from autoglm_export.auto_runtime.timing import Measured, Timing, Workload
from autoglm_export.errors import ExportError, InvalidOption
from autoglm_export.export import export
from autoglm_export.runtimes import no_progress
from typer.testing import CliRunner

from tests.support.export.tiny_decoders import SPECS
from tests.support.export.tiny_models import write_checkpoint

TINY = SPECS["llama"]
PLANS = [Options(name, "int8", 16, 1024, 128) for name in CANDIDATES]
TYPICAL = Workload(num_prompt_tokens=128, num_sequences=16)
FAST, SLOW = Timing(200.0, 40.0, 9.0), Timing(300.0, 41.0, 8.0)
NO_COMPILER = "the native runtime needs a C++ compiler: install g++ or clang++, or `pip install ziglang`"


class Measures:
    """In the place of `measure`: what it found is decided beforehand."""

    def __init__(self, timings: Mapping[str, Timing], failures: Mapping[str, Exception] | None = None) -> None:
        self.found = Measured(TYPICAL, 15, 2, dict(timings), dict(failures or {}))
        self.calls: list[Sequence[Options]] = []

    def __call__(self, plans: Sequence[Options], *_: Any) -> Measured:
        self.calls.append(plans)
        return self.found


def chosen(measures: Measures, plans: Sequence[Options] = PLANS) -> runtime_choice.Choice:
    return choose(plans, {}, TINY, Path("unused"), no_progress, measures)


# ---- what is offered


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_compiler() -> list[str]:
        raise ExportError(NO_COMPILER)

    monkeypatch.setattr(runtime_choice, "can_build_here", lambda: False)
    monkeypatch.setattr(runtime_choice, "find_compiler", find_compiler)


def test_both_are_offered_where_both_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_choice, "can_build_here", lambda: True)
    assert candidates("auto", None) == candidates("auto", "int8") == Candidates(("native", "onnx"))


def test_a_name_is_its_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    assert candidates("native", "int8") == Candidates(("native",)), "the export says what is missing"
    with pytest.raises(InvalidOption, match="the runtime native has no precision 'fp32'"):
        candidates("native", "fp32")


def test_what_cannot_be_built_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"native": "the runtime native has no precision 'fp32'; allowed are int8"}
    assert candidates("auto", "fp32") == Candidates(("onnx",), told)
    without_compiler(monkeypatch)
    assert candidates("auto", "int8") == Candidates(("onnx",), {"native": NO_COMPILER})
    monkeypatch.setattr(runtime_choice, "find_compiler", lambda: ["g++"])
    assert candidates("auto", "int8").left_out == {"native": "the native runtime needs Linux on x86-64"}


def test_without_onnx_runtime_native_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(lowering.RUNTIMES["onnx"], distribution="no-such-distribution")
    monkeypatch.setitem(lowering.RUNTIMES, "onnx", absent)
    monkeypatch.setattr(runtime_choice, "can_build_here", lambda: True)
    offered = candidates("auto", "int8")
    assert offered.names == ("native",) and "no-such-distribution" in offered.left_out["onnx"]
    with pytest.raises(InvalidOption, match="the runtime onnx has no precision 'bf16'"):
        candidates("auto", "bf16")


# ---- which is taken


@pytest.mark.parametrize("faster", CANDIDATES)
def test_the_faster_one_is_taken(faster: str) -> None:
    measures = Measures({name: FAST if name == faster else SLOW for name in CANDIDATES})
    choice = chosen(measures)
    assert choice.plan.runtime == faster and choice.left_out == {}
    assert measures.calls == [PLANS]


def test_a_request_is_its_prompt_and_its_share_of_the_steps() -> None:
    assert FAST.request_ms(TYPICAL) == 200 + 64 * 40 / 16
    assert FAST.request_ms(Workload(32, 4)) == 4 * 200 + 64 * 40 / 4
    slow_prefill = {"native": Timing(300.0, 40.0, 1.0), "onnx": Timing(200.0, 50.0, 1.0)}
    assert chosen(Measures(slow_prefill)).plan.runtime == "onnx", "300 + 160 against 200 + 200"


@pytest.mark.parametrize(("onnx_ms", "taken"), [(96.0, "native"), (94.0, "onnx"), (100.0, "native"), (104.0, "native")])
def test_native_is_taken_where_the_difference_is_noise(onnx_ms: float, taken: str) -> None:
    measures = Measures({"native": Timing(100.0, 0.0, 0.0), "onnx": Timing(onnx_ms, 0.0, 0.0)})
    assert chosen(measures).plan.runtime == taken


def test_nothing_is_measured_where_only_one_is_offered() -> None:
    measures = Measures({})
    choice = choose(PLANS[1:], {"native": NO_COMPILER}, TINY, Path("unused"), no_progress, measures)
    assert not measures.calls
    assert choice.as_json() == {"chosen": "onnx", "left_out": {"native": NO_COMPILER}, "measured": {}}


def test_one_that_fails_is_left_out_with_one_line_that_names_no_folder_of_the_machine() -> None:
    error = ExportError("/usr/bin/g++ could not build '/home/me/x/decoder.cpp': 3 tokens/s\nand much more")
    choice = chosen(Measures({}, {"native": error}))
    assert choice.plan.runtime == "onnx"
    assert choice.as_json()["left_out"] == {"native": "g++ could not build 'decoder.cpp': 3 tokens/s"}
    assert chosen(Measures({}, {"onnx": MemoryError()})).left_out == {"onnx": "MemoryError"}


def test_where_all_fail_the_last_error_is_raised() -> None:
    failures = {"native": ExportError("no compiler"), "onnx": ValueError("no graph")}
    with pytest.raises(ValueError, match="no graph"):
        chosen(Measures({}, failures))


# ---- what is told


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice") / "tiny-llama"
    write_checkpoint(folder, "llama")
    return folder


def told(monkeypatch: pytest.MonkeyPatch, measures: Measures, *arguments: str) -> str:
    monkeypatch.setattr(exporting, "measure", measures)
    result = CliRunner().invoke(app, ["export", *arguments], env={"COLUMNS": "60", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.stderr


@pytest.mark.slow
def test_the_export_tells_and_records_and_inspect_shows(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "native 464 ms a request (prefill of 128 in 300 ms, 16 tokens in 41.0 ms, 1 token in 8.0 ms), "
        "onnx 360 ms a request (prefill of 128 in 200 ms, 16 tokens in 40.0 ms, 1 token in 9.0 ms); took onnx"
    )
    out = tmp_path / "artifact"
    assert f"auto: {line}\n" in told(
        monkeypatch, Measures({"native": SLOW, "onnx": FAST}), str(checkpoint), "-o", str(out)
    )
    manifest = Manifest.load(out)
    found = manifest.runtime_details["auto"]
    assert manifest.runtime == found["chosen"] == "onnx" and choice_line(found) == line
    assert found["measured"]["onnx"] == {
        "prefill_ms": 200.0,
        "decode_ms": 40.0,
        "decode_1_ms": 9.0,
        "request_ms": 360.0,
    }
    assert (found["prefill_tokens"], found["decode_sequences"]) == (128, 16)
    shown = CliRunner().invoke(app, ["inspect", str(out)], env={"COLUMNS": "400"}).stdout
    assert f"auto: {line}" in shown
    assert (
        json.loads(CliRunner().invoke(app, ["inspect", str(out), "--json"]).stdout)["runtime_details"]["auto"] == found
    )


def test_the_digest_knows_nothing_of_the_times(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "measure", Measures({"native": SLOW, "onnx": FAST}))
    measured, named = export(checkpoint, tmp_path / "a"), export(checkpoint, tmp_path / "b", runtime="onnx")
    assert measured.digest == named.digest and "auto" not in named.runtime_details


def test_the_export_says_why_there_was_no_choice(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (str(checkpoint), "-o", str(tmp_path / "artifact"), "--precision", "fp32")
    line = "auto: took onnx; not native: the runtime native has no precision 'fp32'; allowed are int8\n"
    assert line in told(monkeypatch, Measures({}), *arguments)


def test_options_are_checked_before_anything_is_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "measure", measures := Measures({}))
    monkeypatch.setattr(runtime_choice, "can_build_here", lambda: True)
    for options in ({"max_length": 513}, {"max_slots": 0}, {"kv_dtype": "fp16"}, {"precision": "int3"}):
        with pytest.raises(InvalidOption):
            export(checkpoint, tmp_path / "out", **options)
    assert not measures.calls and not list(tmp_path.iterdir())
