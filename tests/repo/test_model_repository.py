"""The config files are what docs/architecture.md says, and the packages keep to themselves."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.foreign_inputs import FOREIGN_INPUTS
from autoglm_engine.options.table import OPTIONS, PROMPTS
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.triton.deployment import check_preserves_order, check_single_instance, check_version
from autoglm_engine.triton.foreign_outputs import FOREIGN_OUTPUTS
from autoglm_engine.triton.model_config import engine_settings
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
MODELS = ("autoglm", "tokenizer", "engine", "detokenizer", "embedder", "vision")
OTHERS_NAMES = ("ensemble", "vllm_model")  # the same steps under the names of other backends' models
STEPS = MODELS[1:4]
Tensor = tuple[str, tuple[int, ...]]  # type, dims


def config(model: str) -> Any:
    text = (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(specs: Any) -> dict[str, Tensor]:
    return {
        spec.name: (model_config_pb2.DataType.Name(spec.data_type).removeprefix("TYPE_"), tuple(spec.dims))
        for spec in specs
    }


def documented(column: str) -> dict[str, Tensor]:
    """The rows of the table whose first heading is `column`."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split(f"| {column} | type | shape |", 1)[1].split("\n\n", 1)[0]
    found: dict[str, Tensor] = {}
    for row in re.findall(r"^\| ([a-z0-9_, ]+) \| (\w+) \| \[(-?\d+)\] \|", table, flags=re.MULTILINE):
        names, dtype, dims = row
        found |= {name: (dtype, (int(dims),)) for name in names.split(", ")}
    return found


@pytest.mark.parametrize("model", (*MODELS, *OTHERS_NAMES))
def test_a_config_parses_and_is_named_after_its_folder(model: str) -> None:
    parsed = config(model)
    assert parsed.name == model
    assert (parsed.max_batch_size > 0) == (model != "vllm_model")  # vLLM's backend has no batch dimension
    assert "${" not in (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", MODELS[1:])
def test_every_step_has_a_queue_and_takes_any_length(model: str) -> None:
    parsed = config(model)
    assert parsed.HasField("dynamic_batching"), "a queue, and an order that it keeps, also where a batch is one request"
    assert all(spec.allow_ragged_batch for spec in parsed.input if -1 in spec.dims)


def test_the_public_tensors_are_the_documented_ones() -> None:
    ensemble = config("autoglm")
    own = {name: tensor for name, tensor in tensors(ensemble.input).items() if name not in FOREIGN_INPUTS}
    assert own == documented("input")
    assert tensors(ensemble.output) == documented("output")
    assert all(spec.optional for spec in ensemble.input)


def test_the_option_table_is_the_documented_one() -> None:
    shown = documented("input")
    assert list(shown) == [*PROMPTS, *OPTIONS]
    assert {name: dtype for name, (dtype, _) in shown.items() if name in OPTIONS} == {
        name: option.dtype for name, option in OPTIONS.items()
    }


def test_each_step_passes_on_what_the_next_one_takes() -> None:
    ensemble = config("autoglm")
    steps = {step.model_name: step for step in ensemble.ensemble_scheduling.step}
    assert list(steps) == list(STEPS)
    elsewhere = {"control", "unsigned_seed", *FOREIGN_OUTPUTS}
    for name, step in steps.items():
        parsed = config(name)
        assert set(step.output_map) == set(tensors(parsed.output)) - elsewhere
        assert set(step.input_map) == set(tensors(parsed.input)) - elsewhere
        assert all(key == value for mapping in (step.input_map, step.output_map) for key, value in mapping.items())
    own = {"unsigned_seed": ("UINT64", (1,)), "control": ("STRING", (1,))}
    assert tensors(config("tokenizer").input) == {**tensors(ensemble.input), **own}
    assert tensors(ensemble.output).items() <= tensors(config("detokenizer").output).items()
    assert set(tensors(config("detokenizer").output)) == {*tensors(ensemble.output), *FOREIGN_OUTPUTS}
    assert tensors(config("tokenizer").output).items() <= tensors(config("engine").input).items()
    assert tensors(config("engine").output) == tensors(config("detokenizer").input)


@pytest.mark.parametrize("model", OTHERS_NAMES)
def test_the_steps_answer_under_the_names_of_others_too(model: str) -> None:
    """With the tensors of the steps, under names of their own."""
    ensemble = config(model)
    steps = {step.model_name: step for step in ensemble.ensemble_scheduling.step}
    own = {step.model_name: step for step in config("autoglm").ensemble_scheduling.step}
    assert list(steps) == list(STEPS) and steps["engine"] == own["engine"]
    assert all(spec.optional for spec in ensemble.input)
    taken, given = tensors(config("tokenizer").input), tensors(config("detokenizer").output)
    inputs, outputs = steps["tokenizer"].input_map, steps["detokenizer"].output_map
    assert tensors(ensemble.input) == {name: taken[key] for key, name in inputs.items()}
    assert tensors(ensemble.output) == {name: given[key] for key, name in outputs.items()}
    assert set(FOREIGN_INPUTS) - {"unsigned_seed"} <= set(tensors(config("autoglm").input))


@pytest.mark.parametrize(
    ("model", "otherwise"),
    [("ensemble", {"seed": "unsigned_seed"}), ("vllm_model", {"logprobs": "return_logprobs"})],  # as they have it
)
def test_every_option_can_be_set_under_the_names_of_others_too(model: str, otherwise: dict[str, str]) -> None:
    step = next(step for step in config(model).ensemble_scheduling.step if step.model_name == "tokenizer")
    own = (*(name for name in PROMPTS if name != "images"), *OPTIONS)
    assert {otherwise.get(name, name) for name in own} <= set(step.input_map)
    assert all(step.input_map[name] == name for name in own if name not in otherwise)


def test_the_inputs_of_others_have_the_types_of_the_table() -> None:
    found = tensors(config("tokenizer").input)
    wanted = {name: (foreign.dtype, (-1 if foreign.is_list else 1,)) for name, foreign in FOREIGN_INPUTS.items()}
    assert {name: found[name] for name in wanted} == wanted


def in_json(parsed: Any) -> str:
    """As Triton gives a config to its models."""
    return json_format.MessageToJson(parsed, preserving_proto_field_name=True, including_default_value_fields=True)


@pytest.mark.parametrize("model", ["engine", "detokenizer"])
def test_the_order_of_events_needs_one_instance(model: str) -> None:
    parsed = config(model)
    assert [group.count for group in parsed.instance_group] == [1]
    check_single_instance(model, in_json(parsed))
    parsed.instance_group[0].count = 2
    with pytest.raises(InvalidRequest, match=rf"^{model} has 2 instances in instance_group, it must have 1"):
        check_single_instance(model, in_json(parsed))
    parsed.instance_group[0].count = 1
    parsed.instance_group.add(count=1)
    with pytest.raises(InvalidRequest, match="has 2 instances"):
        check_single_instance(model, in_json(parsed))
    del parsed.instance_group[:]
    parsed.instance_group.add(count=1, gpus=[0, 1])
    with pytest.raises(InvalidRequest, match="has 2 instances"):
        check_single_instance(model, in_json(parsed))


def test_pieces_leave_in_the_order_of_events() -> None:
    """Each step of the ensemble keeps it on any Triton: by being decoupled, by preserve_ordering, or by coming before
    the only model that answers more than once."""
    assert config("engine").model_transaction_policy.decoupled
    detokenizer = config("detokenizer")
    assert detokenizer.dynamic_batching.preserve_ordering
    check_preserves_order("detokenizer", in_json(detokenizer))
    for wrong in ("dynamic_batching { }", ""):
        other = text_format.Parse(wrong, model_config_pb2.ModelConfig())
        with pytest.raises(
            InvalidRequest, match=r"detokenizer must have dynamic_batching \{ preserve_ordering: true \}"
        ):
            check_preserves_order("detokenizer", in_json(other))


@pytest.mark.parametrize("model", MODELS[1:])
def test_one_version_of_each_model_is_served(model: str) -> None:
    check_version(model, "1")
    with pytest.raises(InvalidRequest, match=f"^{model}/2 cannot be served: .* remove {model}/2$"):
        check_version(model, "2")
    source = (REPOSITORY / model / "1" / "model.py").read_text(encoding="utf-8")
    assert 'check_version(args["model_name"], args["model_version"])' in source


def test_the_engines_parameters_are_its_settings() -> None:
    settings, num_threads = engine_settings(
        json_format.MessageToJson(config("engine"), preserving_proto_field_name=True), {}
    )
    assert settings == EngineSettings()
    assert num_threads >= 1


def test_the_environment_goes_before_the_parameters() -> None:
    text = '{"parameters": {"max_queue": {"string_value": "5"}, "prefix_reuse": {"string_value": "true"}}}'
    environ = {"AUTOGLM_MAX_QUEUE": "7", "AUTOGLM_PREFIX_REUSE": "false", "AUTOGLM_NUM_THREADS": "3"}
    assert engine_settings(text, environ) == (EngineSettings(max_queue=7, prefix_reuse=False), 3)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_queu", "5", "the unknown parameter max_queu"),
        ("max_queue", "many", "the setting max_queue is 'many'; it must be a whole number"),
        ("max_queue", "0", "the setting max_queue is 0; it must be between 1 and"),
        ("admission", "lifo", "the setting admission is 'lifo'; allowed are fifo, features, static"),
        ("admission_window", "0", "the setting admission_window is 0; it must be between 1 and 4096"),
        ("admission_user_weight", "1.5", "the setting admission_user_weight is 1.5; it must be between 0 and 1"),
        ("admission_max_delay_ms", "nan", "the setting admission_max_delay_ms is nan; it must be between 0 and"),
        ("static_window_ms", "-1", "the setting static_window_ms is -1.0; it must be between 0 and 60000"),
        ("prefix_reuse", "perhaps", "the setting prefix_reuse is 'perhaps'; it must be true or false"),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(sentence)):
        engine_settings(f'{{"parameters": {{"{name}": {{"string_value": "{value}"}}}}}}', {})


def imported(folder: Path) -> dict[str, set[str]]:
    """Top-level names of every module that a file imports anywhere -> files."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(path.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        (
            "model_repository/engine/1/autoglm_engine",
            {"autoglm_client", "autoglm_export", "triton_python_backend_utils"},
        ),
        ("model_repository/engine/1/autoglm_engine", {"tritonclient", "torch", "transformers"}),
        ("client/autoglm_client", {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "pytriton"}),
        ("client/autoglm_cli", {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "pytriton"}),
        ("export/autoglm_export", {"autoglm_client", "triton_python_backend_utils", "tritonclient"}),
    ],
)
def test_arrows_point_one_way(folder: str, forbidden: set[str]) -> None:
    wrong = {name: files for name, files in imported(ROOT / folder).items() if name in forbidden}
    assert not wrong


def test_the_engine_imports_nothing_but_what_it_says() -> None:
    allowed = {
        "autoglm_engine",
        "numpy",
        "tokenizers",
        "jinja2",
        "onnxruntime",
        "redis",
        "faiss",
        "llguidance",
        "PIL",
        "tomli",
        "__future__",
    } | set(sys.stdlib_module_names)
    found = imported(REPOSITORY / "engine" / "1" / "autoglm_engine")
    assert set(found) <= allowed, {name: found[name] for name in set(found) - allowed}
    assert found["redis"] == {"commands.py", "tier.py"}, "without a redis_url it need not be installed"
