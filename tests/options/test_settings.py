"""Serving settings: what a file may say, what goes first, what is refused, and that the documentation is so."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from autoglm_cli import app
from autoglm_cli.configuring import command_settings, server_environment, serving_settings
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.file import as_text, as_toml, parse_text, read_settings, settings_of
from autoglm_engine.settings.model import ServingSettings, plain_settings
from typer.testing import CliRunner, Result

from tests.support.engine.engine_bench import VOCAB, Bench
from tests.support.engine.fakes import request

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
SETTINGS_PAGE = (ROOT / "docs" / "serving" / "settings.md").read_text(encoding="utf-8")
NAMES = [field.name for field in dataclasses.fields(ServingSettings)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def serve(*arguments: str, env: dict[str, str] | None = None) -> Result:
    options = ["serve", "--repository", str(REPOSITORY), *arguments]
    return CliRunner().invoke(app, options, env={"COLUMNS": "200", "TERM": "dumb", **(env or {})})


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = read_settings(write(tmp_path / "a.toml", 'max_queue = 7\nheartbeat_ms = 50\ndevice = "cpu"\n'))
    found = read_settings(write(tmp_path / "a.json", json.dumps({"max_queue": 7, "heartbeat_ms": 50, "device": "cpu"})))
    assert toml == found == {"max_queue": 7, "heartbeat_ms": 50, "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_queu = 7", "there is no setting 'max_queu'; did you mean max_queue?"),
        ("max_queue = 0", "the setting max_queue is 0; it must be between 1 and 1000000"),
        ("max_queue = true", "the setting max_queue is True; it must be a whole number"),
        ("max_queue = 1.5", "the setting max_queue is 1.5; it must be a whole number"),
        ("heartbeat_ms = nan", "the setting heartbeat_ms is nan; it must be between"),
        ("prefix_reuse = 1", "the setting prefix_reuse is 1; it must be true or false"),
        ('device = "abacus"', "the setting device is 'abacus'; allowed are auto, cpu, cuda"),
        ("prefetch_factor = 0", "the setting prefetch_factor is 0; it must be between 1 and 1000"),
        ("colour = 1", "there is no setting 'colour'; known are max_queue, max_batch_size"),
        ("[engine]\nmax_queue = 1", "there is no setting 'engine'"),
        ("max_queue =", "cannot be read: Invalid value"),
    ],
)
def test_a_wrong_file_is_refused_by_name_before_the_server_starts(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path / "serving.toml", text)
    with pytest.raises(InvalidRequest, match=re.escape(sentence)):
        read_settings(path)
    result = serve("--config", str(path))
    assert result.exit_code == 1
    assert sentence in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"settings are read from \.toml and \.json"):
        read_settings(write(tmp_path / "a.yaml", ""))
    with pytest.raises(InvalidRequest, match="holds list"):
        read_settings(write(tmp_path / "a.json", "[1]"))
    assert "there is no settings file at" in serve("--config", str(tmp_path / "none.toml")).stderr


def test_the_environment_goes_before_the_file_and_the_file_before_the_repository(tmp_path: Path) -> None:
    file = read_settings(write(tmp_path / "a.toml", "max_queue = 7\ntoken_budget = 9\nuse_streaming = false"))
    environ = {"AUTOGLM_MAX_QUEUE": "8"}
    settings = serving_settings(REPOSITORY, file, environ)
    assert (settings.max_queue, settings.token_budget, settings.use_streaming) == (8, 9, False)
    assert settings.max_events_per_second == 400
    assert server_environment(file, environ) == {"AUTOGLM_TOKEN_BUDGET": "9", "AUTOGLM_USE_STREAMING": "false"}


def test_the_repository_has_the_defaults() -> None:
    """`--print-config` would else depend on where it is asked."""
    assert serving_settings(REPOSITORY, {}, {}) == ServingSettings()


def test_every_setting_survives_its_text() -> None:
    for name, value in dataclasses.asdict(ServingSettings()).items():
        assert parse_text(name, as_text(value)) == value


def test_the_printed_settings_are_a_file(tmp_path: Path) -> None:
    shown = serve("--config", str(write(tmp_path / "a.toml", "max_queue = 7")), "--print-config")
    assert shown.exit_code == 0
    again = read_settings(write(tmp_path / "b.toml", shown.stdout))
    assert list(again) == NAMES
    assert settings_of({}, again, {}) == dataclasses.replace(serving_settings(REPOSITORY, {}, {}), max_queue=7)
    assert as_toml(settings_of({}, again, {})) == shown.stdout


def test_commands_read_the_file_that_the_environment_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"prefetch_factor": 5}')
    assert command_settings({"AUTOGLM_CONFIG": str(path)}).prefetch_factor == 5
    assert command_settings({"AUTOGLM_CONFIG": str(path), "AUTOGLM_PREFETCH_FACTOR": "3"}).prefetch_factor == 3
    assert command_settings({}).prefetch_factor == 2


def test_the_documented_file_can_be_read(tmp_path: Path) -> None:
    (sample,) = re.findall(r"^```toml\n(.*?)^```", SETTINGS_PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(read_settings(write(tmp_path / "serving.toml", sample))) >= 5


@pytest.mark.parametrize("num_candidates", [0, 8])
def test_no_more_slots_are_used_than_the_batch_size(num_candidates: int) -> None:
    bench = Bench(num_candidates, limits=Limits(4, 64, 8, VOCAB), settings=plain_settings(max_batch_size=2))
    bench.run(*(request(f"r{i}", [i, 2, 3], max_tokens=6, ignore_eos=True) for i in range(5)))
    assert max(len(batch.spans) for batch in bench.runner.batches) == 2
    assert sum(event.is_last for event in bench.events) == 5
    with pytest.raises(InvalidRequest, match="max_batch_size is 5; it must be between 0 and 4"):
        Bench(num_candidates, limits=Limits(4, 64, 8, VOCAB), settings=plain_settings(max_batch_size=5))
