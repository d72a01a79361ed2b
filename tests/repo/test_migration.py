"""docs/migration.md says of every name of another backend what it is here; its tables are those of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine import metrics
from autoglm_engine.metrics import MetricSpec
from autoglm_engine.options.foreign_inputs import FOREIGN_INPUTS, Meaning
from autoglm_engine.options.sampling_json import NAMES
from autoglm_engine.options.table import DEFAULT_MAX_TOKENS, OPTIONS
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.triton.metrics_publisher import PREFIX
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

ROOT = Path(__file__).parents[2]
PAGE = re.sub(r"<!--.*?-->", "", (ROOT / "docs" / "migration.md").read_text(encoding="utf-8"))
ELSEWHERE = {"exit_with_engine"}  # a setting of the tokenizer


def config(model: str) -> Any:
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def rows(heading: str, section: str = "") -> list[list[str]]:
    """The cells of the table with this heading, in or after the section."""
    text = PAGE[PAGE.index(section) :] if section else PAGE
    table = text.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


INPUTS = {name: (dtype, here) for name, dtype, here in rows("theirs | type | here")}


def test_every_input_of_others_is_on_the_page_with_its_type() -> None:
    own = {"bad_words": "STRING"}
    assert {name: dtype for name, (dtype, _) in INPUTS.items()} == {
        **own,
        **{name: foreign.dtype for name, foreign in FOREIGN_INPUTS.items()},
    }


@pytest.mark.parametrize("name", FOREIGN_INPUTS)
def test_the_page_says_what_an_input_means(name: str) -> None:
    foreign, (_, here) = FOREIGN_INPUTS[name], INPUTS[name]
    match foreign.meaning:
        case Meaning.RENAMED:
            assert code(here)[0] == foreign.option and foreign.option in OPTIONS
        case Meaning.ONLY:
            assert here.startswith(f"{str(foreign.value).lower()} alone")
        case Meaning.NOTHING:
            assert here.startswith(("without effect", "always so"))
        case Meaning.LOGPROBS:
            assert "logprobs" in here or here == "the same"
        case Meaning.SEED:
            assert "seed" in here
        case Meaning.OWN_RULE:
            assert not here.startswith(("without effect", "always so"))


def test_names_that_are_the_same_are_in_both() -> None:
    (sentence,) = re.findall(r"^Of the same name and meaning: (.*)$", PAGE, re.MULTILINE)
    taken = {spec.name for spec in config("ensemble").input}
    assert set(code(sentence)) - {"text_input"} <= set(OPTIONS) and set(code(sentence)) <= taken


def test_what_is_said_not_to_be_there_is_not() -> None:
    for sentence in re.findall(r"^Not there.*$", PAGE, re.MULTILINE):
        missing = set(code(sentence.split(". `autoglm` has", 1)[0]))
        for model in ("autoglm", "ensemble", "vllm_model"):
            specs = [*config(model).input, *config(model).output]
            assert not missing & {spec.name for spec in specs}


def test_every_sampling_parameter_of_vllm_is_on_the_page() -> None:
    told = [name for names, _ in rows("parameters | here") for name in names.split(", ")]
    assert sorted(told) == sorted(NAMES)


def test_every_output_under_the_names_of_others_is_on_the_page() -> None:
    found = {"both": set[str](), "vllm_model": set[str](), "ensemble": set[str]()}
    for name, model, _ in rows("theirs | model | here"):
        found[model].add(name)
    for model, more in (("vllm_model", set[str]()), ("ensemble", {"finish_reason"})):
        assert {spec.name for spec in config(model).output} == found["both"] | found[model] | more


def test_the_settings_are_there() -> None:
    named = {name for _, here in rows("theirs | here", "## Settings") for name in code(here) if " " not in name}
    assert named - ELSEWHERE <= {field.name for field in dataclasses.fields(EngineSettings)}


def test_the_metrics_are_there() -> None:
    specs = [spec for spec in vars(metrics).values() if isinstance(spec, MetricSpec)]
    names = {spec.name for spec in specs}
    for _, here in rows("theirs | here", "## Metrics"):
        assert here.startswith(PREFIX)
        assert re.sub(r"_(total|seconds|tokens)$", "", here.removeprefix(PREFIX)) in names, here


def test_the_defaults_on_the_page_are_ours() -> None:
    assert f"`max_tokens` is {DEFAULT_MAX_TOKENS} " in PAGE
