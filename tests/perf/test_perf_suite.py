"""The suite without servers: spreads and ratios, the registry, failures that stay alone, the summary and the page."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from autoglm_engine.engine.engine import Engine
from autoglm_engine.runners.base import Limits
from autoglm_perf.baselines import naive
from autoglm_perf.experiments.system.analyzer_sweep import composing_line
from autoglm_perf.in_process import export_time, kernels
from autoglm_perf.in_process.in_process import drive
from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.suite import markdown, page
from autoglm_perf.suite.arms import LATENCY, REQUESTS, RequestsFailed, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Experiment, Found, Metric, Published
from autoglm_perf.suite.outputs import SUITE, is_whole, outputs_of
from autoglm_perf.suite.plot import Bar, Line, Panel, bars, lines
from autoglm_perf.suite.registry import APART, MODULES, UnknownExperiment, load, load_all
from autoglm_perf.suite.results import append_jsonl, write_json
from autoglm_perf.suite.rows import cell, headings, rows
from autoglm_perf.suite.spread import Spread, improvement, shown
from autoglm_perf.suite.suite import CannotRun, Result, run_all
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine.fakes import FakeRunner, letters_text, letters_tokenizer

RATE, TIME = Metric("rate", "1/s"), Metric("time", "ms", higher_is_better=False)
NASTY = 'a|b <script>"x"</script> & c'
ABOUT = {
    "time": "now",
    "cpu": "cpu",
    "cores": 2,
    "python": "3.11",
    "artifact": "m",
    "repeats": 3,
    "packages": {"p": "1"},
}
FOUND = Found(
    (Arm("off", {"rate": (1.0, 3.0, 2.0), "time": (40.0,)}), Arm("on", {"rate": (8.0, 7.0, 9.0), "time": (10.0,)})),
    {"prompt": NASTY},
    "7 requests",
    ("a remark",),
)


def described(name: str = "x") -> Description:
    return Description(name, NASTY, "it is so", (RATE, TIME), (Published("850 ms", "320 ms"),))


def measured() -> Result:
    return Result(described(), "measured", 1.0, FOUND)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_median_lies_between_the_least_and_the_greatest(values: list[float]) -> None:
    spread = Spread.of(values)
    assert (spread.low, spread.high, spread.samples) == (min(values), max(values), len(values))
    assert spread.low <= spread.median <= spread.high
    assert sum(v <= spread.median for v in values) * 2 >= len(values)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_spread_of_nothing_or_of_what_is_not_a_number(values: list[float]) -> None:
    with pytest.raises(ValueError, match="a spread needs numbers"):
        Spread.of(values)


@pytest.mark.parametrize(
    ("before", "after", "higher", "expected"),
    [
        (2.0, 8.0, True, 4.0),
        (40.0, 10.0, False, 4.0),
        (8.0, 2.0, True, 0.25),
        (0.0, 2.0, True, None),
        (2.0, 0.0, False, None),
    ],
)
def test_an_improvement_is_over_one_when_it_is_a_gain(
    before: float, after: float, higher: bool, expected: float | None
) -> None:
    assert improvement(before, after, higher_is_better=higher) == expected


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (99.94, "99.9"), (3.14159, "3.14"), (0.26, "0.260"), (0, "0.00")]
)
def test_figures_are_shown_with_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_figure_may_ask_for_its_decimals() -> None:
    assert shown(1.00234, 4) == "1.0023"


def test_a_cell_has_median_spread_and_gain_over_its_baseline() -> None:
    before, after = FOUND.arms
    assert cell(FOUND, before, RATE) == "2.00 (1.00 ... 3.00)"
    assert cell(FOUND, after, RATE) == "8.00 (7.00 ... 9.00), 4.00x"
    assert cell(FOUND, after, TIME) == "10.0, 4.00x"
    assert cell(FOUND, Arm("none", {}), RATE) == "-"


def test_a_baseline_may_be_named() -> None:
    arms = (*FOUND.arms, Arm("third", {"rate": (16.0,)}))
    found = Found(arms, {}, "", baselines={"third": "on"})
    assert found.baseline_of(arms[2]) == arms[1]
    assert cell(found, arms[2], RATE) == "16.0, 2.00x"


def test_the_registry_knows_every_module_and_refuses_unknown_names() -> None:
    names = [experiment.description.name for experiment in load_all()]
    assert names == [module.rpartition(".")[2].replace("_", "-") for module in MODULES]
    assert [experiment.description.name for experiment in load()] == [name for name in names if name not in APART]
    assert [experiment.description.name for experiment in load(APART)] == list(APART)
    assert [e.description.name for e in load(["calls", "connections"])] == ["connections", "calls"]
    with pytest.raises(UnknownExperiment, match="'nothing'; there are whole-system"):
        load(["nothing"])
    assert all(experiment.description.metrics and experiment.description.claim for experiment in load_all())


def context(tmp_path: Path) -> Context:
    return Context(tmp_path, tmp_path, letters_tokenizer(), True, 1, lambda text: None)


def test_an_experiment_that_fails_stops_no_other(tmp_path: Path) -> None:
    def fails(context: Context) -> Found:
        raise RuntimeError("no luck")

    def cannot(context: Context) -> Found:
        raise CannotRun("no camel")

    runs = [fails, cannot, lambda context: FOUND]
    experiments = [Experiment(described(str(number)), run) for number, run in enumerate(runs)]
    told: list[str] = []
    results = run_all(experiments, context(tmp_path), lambda result: told.append(result.status))
    assert told == ["failed", "skipped", "measured"]
    assert [result.reason for result in results] == ["RuntimeError: no luck", "no camel", ""]
    assert results[2].found is FOUND


def test_figures_of_failed_requests_are_refused() -> None:
    good, bad = RequestTiming(0, 1, 2, 4, ()), RequestTiming(0, 1, 2, 0, (), "full")
    run = figures("ours", 1, [good])
    assert arm("ours", [run, run], (REQUESTS, LATENCY)).values == {"requests": (0.5, 0.5), "latency p50": (2e3, 2e3)}
    with pytest.raises(RequestsFailed, match="1 of 2 requests of 'ours' failed, the first with: full"):
        figures("ours", 1, [good, bad])


def test_the_summary_replaces_what_lies_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"by hand\n\n{markdown.BEGIN}\nold\n{markdown.END}\n\nafter\n", encoding="utf-8")
    for _ in range(2):
        markdown.write_summary(document, markdown.render([measured()], ABOUT))
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"by hand\n\n{markdown.BEGIN}\n## The suite\n") and text.endswith(
        f"{markdown.END}\n\nafter\n"
    )
    assert "old" not in text and text.count("## The suite") == 1
    assert "| on | 8.00 (7.00 ... 9.00), 4.00x | 10.0, 4.00x |" in text
    assert "Published: 850 ms -> 320 ms." in text


@pytest.mark.parametrize(
    "text", ["", markdown.BEGIN, f"{markdown.END}{markdown.BEGIN}", 2 * (markdown.BEGIN + markdown.END)]
)
def test_a_document_without_one_pair_of_markers_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match="needs one line"):
        markdown.replaced(text, "new")


@given(st.text())
def test_nothing_in_a_cell_of_markdown_ends_it(text: str) -> None:
    escaped = markdown.escaped(text)
    assert "\n" not in escaped and "<" not in escaped
    assert not re.search(r"(?<!\\)\|", escaped)


def test_the_page_escapes_everything_and_loads_nothing() -> None:
    failed = Result(described("y"), "failed", 0.0, reason="<b>&")
    text = page.render([measured(), failed], {**ABOUT, "cpu": NASTY}, notice="<i>")
    assert "<script" not in text and "<b>" not in text and "<i>" not in text
    assert not re.search(r"(src|href)=\"(?!#)|url\(|@import|https?://", text)
    assert "Failed: &lt;b&gt;&amp;" in text
    assert text.count("<svg") == 1 and "8.00 (7.00 ... 9.00), 4.00x" in text
    assert "prefers-color-scheme:dark" in text


def test_bars_are_proportional_and_show_their_spread() -> None:
    drawn = bars("t", [Bar("a", Spread(50, 40, 100, 3), True), Bar("b" * 60, Spread(100, 100, 100, 3))])
    first, second = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn))
    assert second == pytest.approx(2 * first)
    assert drawn.count('class="before"') == drawn.count('class="after"') == 1
    assert "b" * 60 not in drawn


def test_lines_span_their_panel_and_are_named() -> None:
    panel = Panel("memory <b>", "MiB", (Line("a&b", ((0.0, 5.0), (30.0, 10.0), (60.0, 0.0))), Line("c", ())))
    drawn = lines(panel)
    (path,) = re.findall(r'points="([^"]+)" class="l0"', drawn)
    points = [tuple(map(float, point.split(","))) for point in path.split()]
    (left, middle), (_, top), (right, bottom) = points
    assert left < right and top < middle < bottom and middle == pytest.approx((top + bottom) / 2)
    assert "a&amp;b" in drawn and "<b>" not in drawn and "1.00 min" in drawn


def test_what_was_not_met_is_said_on_the_page_and_in_the_summary() -> None:
    missed = replace(measured(), found=replace(FOUND, unmet=("it <grew>",), panels=(Panel("p", "ms", ()),)))
    assert "Not met: it &lt;grew&gt;" in page.render([missed], ABOUT)
    assert page.render([missed], ABOUT).count("<svg") == 2
    assert "Not met: it &lt;grew>" in markdown.render([missed], ABOUT)
    assert "Not met" not in page.render([measured()], ABOUT)


def test_an_experiment_that_runs_apart_has_files_and_markers_of_its_own(tmp_path: Path) -> None:
    apart = outputs_of(["soak"])
    assert outputs_of(["calls"]) == outputs_of(["calls", "soak"]) == SUITE
    assert {apart.page, apart.data, apart.summary}.isdisjoint({SUITE.page, SUITE.data, SUITE.summary})
    document = tmp_path / "performance.md"
    document.write_text(
        "\n".join([*markdown.markers(SUITE.command), *markdown.markers(apart.command)]), encoding="utf-8"
    )
    markdown.write_summary(document, "of the suite", SUITE.command)
    markdown.write_summary(document, "of the soak", apart.command)
    markdown.write_summary(document, "of the soak, again", apart.command)
    text = document.read_text(encoding="utf-8")
    assert text.index("of the suite") < text.index("of the soak, again") and text.count("of the soak") == 1


@pytest.mark.parametrize(
    ("only", "quick", "minutes", "expected"),
    [
        ([], False, 20, True),
        ([], True, 20, False),
        (["calls"], False, 20, False),
        (["soak"], False, 20, True),
        (["soak"], False, 3, False),
        (["soak"], True, 20, False),
        (["vision"], False, 20, True),
        (["vision"], True, 20, False),
    ],
)
def test_only_whole_runs_may_rewrite_the_document(only: list[str], quick: bool, minutes: float, expected: bool) -> None:
    assert is_whole(only, quick=quick, soak_minutes=minutes) is expected


def test_the_json_has_every_value(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", [measured()], ABOUT)
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (only,) = read["experiments"]
    assert only["found"]["arms"][0]["values"]["rate"] == [1.0, 3.0, 2.0]
    assert read["about"]["packages"] == {"p": "1"} and only["description"]["published"][0]["after"] == "320 ms"
    assert len(rows(measured())) == 2 and headings(measured())[1] == "rate, 1/s"


def test_tritons_counters_are_read_as_milliseconds_a_request() -> None:
    stats = {
        "inference_stats": {"success": {"count": 4}, "queue": {"ns": 8_000_000}, "compute_infer": {"ns": 2_000_000}},
        "execution_count": 3,
    }
    assert (
        composing_line("m", stats)
        == "Composing model m: 4 requests, 3 executions; queue 2.00 ms, compute 0.50 ms each."
    )


def test_driving_an_engine_answers_every_request_in_full_and_never_more_at_once() -> None:
    limits = Limits(num_slots=4, max_length=64, prefill_chunk=8, vocab_size=letters_tokenizer().get_vocab_size())
    runner = FakeRunner(limits)
    prompts = [np.array([number, 1, 2], np.int32) for number in range(9)]
    timings = drive(Engine(runner, letters_text(), ()), prompts, 5, concurrency=3)
    assert [(t.num_tokens, t.error) for t in timings] == [(5, None)] * 9
    assert all(t.started <= t.first_token <= t.finished for t in timings)
    assert max(len(batch.spans) for batch in runner.batches) == 3


def test_the_history_gains_a_line_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "results" / "bench.jsonl"
    for _ in range(2):
        append_jsonl(path, [measured(), measured()], ABOUT)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["about"]["cores"] for line in lines] == [2] * 4


@pytest.mark.parametrize("module", [naive, kernels, export_time])
def test_a_program_without_its_arguments_shows_its_usage(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")
