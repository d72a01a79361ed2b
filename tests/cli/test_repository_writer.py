"""`autoglm repository`: the files it makes are the tree's but for names, and what it refuses it leaves as it was."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from autoglm_cli import app
from autoglm_cli.configuring import serving_settings
from autoglm_cli.repository import writer as repository_writer
from autoglm_cli.repository.names import renamed, with_parameters
from autoglm_cli.repository.repositories import families, own_artifact, parameters
from autoglm_cli.repository.writer import Family, write_family
from autoglm_client.exceptions import RepositoryError
from autoglm_client.model_names import ModelNames
from autoglm_engine.manifest import MANIFEST_NAME
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.tokenizer import artifact_texts
from autoglm_engine.triton.neighbours import Neighbours
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner, Result

from tests.support.engine.small_service import write_artifact

TREE = Path(__file__).parents[2] / "model_repository"
MODELS = ("autoglm", "tokenizer", "engine", "detokenizer", "embedder", "vision")
PHONE = ModelNames.of("phone")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """With what is read of a tower here."""
    write_artifact(tmp_path / "seeing")
    manifest = json.loads((tmp_path / "seeing" / "manifest.json").read_text())
    (tmp_path / "seeing" / "manifest.json").write_text(json.dumps(manifest | {"vision": {"runtime": "onnx"}}))
    return tmp_path / "seeing"


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, ["repository", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb", "AUTOGLM_ARTIFACT": ""}
    )


def config(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def expected(model: str) -> dict[str, Any]:
    """The tree's configuration with what a family called phone must change, as Triton would read it."""
    raw: dict[str, Any] = json_format.MessageToDict(config(TREE / model / "config.pbtxt"))
    raw["name"] = PHONE.of_default(model)
    for step in raw.get("ensembleScheduling", {}).get("step", ()):
        step["modelName"] = PHONE.of_default(step["modelName"])
    own = {
        "ensemble_model": "phone",
        "engine_model": "phone-engine",
        "detokenizer_model": "phone-detokenizer",
        "embedder_model": "phone-embedder",
        "vision_model": "phone-vision",
        "artifact": "1/artifact",
        "redis_prefix": "phone",
    }
    for name, value in raw.get("parameters", {}).items():
        if name in own:
            value["stringValue"] = own[name]
    return raw


def test_only_who_reads_images_has_a_model_for_them(tmp_path: Path, artifact: Path, seeing: Path) -> None:
    made = write_family(Family("eyes", TREE, seeing), tmp_path / "models")
    assert made == ["eyes-tokenizer", "eyes-engine", "eyes-detokenizer", "eyes-vision", "eyes"]
    assert parameters(tmp_path / "models", "eyes-engine")["vision_model"] == "eyes-vision"
    assert parameters(tmp_path / "models", "eyes-vision")["engine_model"] == "eyes-engine"
    made = write_family(Family("blind", TREE, artifact), tmp_path / "models")
    assert made == ["blind-tokenizer", "blind-engine", "blind-detokenizer", "blind"]
    assert parameters(tmp_path / "models", "blind-engine")["vision_model"] == ""


@pytest.mark.parametrize("model", MODELS)
def test_a_config_is_the_trees_but_for_names(tmp_path: Path, seeing: Path, model: str) -> None:
    write_family(Family("phone", TREE, seeing, embedder=seeing), tmp_path / "models")
    made = tmp_path / "models" / PHONE.of_default(model) / "config.pbtxt"
    assert json_format.MessageToDict(config(made)) == expected(model)
    tree = (TREE / model / "config.pbtxt").read_text(encoding="utf-8").splitlines()
    for before, after in zip(tree, made.read_text(encoding="utf-8").splitlines(), strict=True):
        assert before.partition("#")[2] == after.partition("#")[2], "comments stay"


@pytest.mark.parametrize("model", MODELS)
def test_the_default_names_are_the_tree(tmp_path: Path, seeing: Path, model: str) -> None:
    write_family(Family("autoglm", TREE, seeing, embedder=seeing), tmp_path)
    assert (tmp_path / model / "config.pbtxt").read_text() == (TREE / model / "config.pbtxt").read_text()


def test_a_file_that_is_not_the_trees_is_no_template() -> None:
    text = (TREE / "autoglm" / "config.pbtxt").read_text()
    with pytest.raises(ValueError, match='model_name: "engine" is there 0 times'):
        renamed(text.replace('model_name: "engine"', 'model_name: "motor"'), "autoglm", PHONE)
    with pytest.raises(ValueError, match='name: "autoglm" is there 2 times; it must be there once'):
        renamed(f'{text}name: "autoglm"\n', "autoglm", PHONE)
    with pytest.raises(ValueError, match="is there 0 times"):
        with_parameters(text, {"engine_model": "x"})
    with pytest.raises(ValueError, match="a quote, a backslash or a control character"):
        with_parameters((TREE / "engine" / "config.pbtxt").read_text(), {"device": 'a"b'})


def test_every_setting_of_the_engine_has_its_line() -> None:
    """A setting that has none could not be one model's own. Triton shows these lines to anybody, so the address of
    Redis, with its password, has none."""
    lines = set(parameters(TREE, "engine"))
    assert {field.name for field in dataclasses.fields(EngineSettings)} - lines == {"redis_url"}


def test_code_and_artifact_are_copied_and_stand_alone(tmp_path: Path, artifact: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(TREE, source, ignore=shutil.ignore_patterns("artifact"))
    (source / "engine" / "1" / "autoglm_engine" / "__pycache__").mkdir(exist_ok=True)
    made = tmp_path / "models"
    names = write_family(Family("phone", source, artifact), made)
    assert names == ["phone-tokenizer", "phone-engine", "phone-detokenizer", "phone"]
    assert sorted(path.name for path in made.iterdir()) == sorted(names)
    shutil.rmtree(source)
    assert not [path for path in made.rglob("*") if path.is_symlink() or path.name == "__pycache__"]
    code = made / "phone-engine" / "1" / "autoglm_engine"
    assert {path.name for path in code.iterdir()} == {
        path.name for path in (TREE / "engine" / "1" / "autoglm_engine").iterdir() if path.name != "__pycache__"
    }
    assert (made / "phone-engine" / "1" / "artifact" / "manifest.json").is_file()
    assert parameters(made, "phone-engine")["embedder_model"] == ""  # there is none


def test_links_lead_to_code_and_artifact(tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_family(Family("phone", TREE, Path("artifact"), link=True), Path("models"))
    engine = tmp_path / "models" / "phone-engine"
    assert (engine / "1" / "artifact").resolve() == artifact
    assert (engine / "1" / "autoglm_engine").resolve() == TREE / "engine" / "1" / "autoglm_engine"
    assert not (engine / "config.pbtxt").is_symlink()


def test_a_family_finds_its_own(tmp_path: Path, artifact: Path) -> None:
    """What the client's tools and the models read out of it is the same."""
    for name in ("phone", "autoglm", "chat"):
        write_family(Family(name, TREE, artifact), tmp_path / "models")
    found = families(tmp_path / "models")
    assert [names.ensemble for names in found] == ["autoglm", "chat", "phone"]
    for names in found:
        for model in names.steps:
            raw = config(tmp_path / "models" / model / "config.pbtxt")
            neighbours = Neighbours.of(json_format.MessageToJson(raw, preserving_proto_field_name=True))
            assert neighbours.engine == names.engine
            used = neighbours.artifact_folder(tmp_path / "models" / model, {"AUTOGLM_ARTIFACT": "/other"})
            assert used == (own_artifact(tmp_path / "models", names) or Path("/other"))
            assert (used == Path("/other")) == (names.ensemble == "autoglm")


# ---- refused


@pytest.mark.parametrize("taken", ["phone", "phone-tokenizer", "phone-engine", "phone-detokenizer"])
def test_a_model_that_is_there_stays(tmp_path: Path, artifact: Path, taken: str) -> None:
    (tmp_path / "models" / taken).mkdir(parents=True)
    with pytest.raises(RepositoryError, match=f"has a model {taken} already; choose another name, or remove it first"):
        write_family(Family("phone", TREE, artifact), tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [taken]


def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> Any:
        def failing(*arguments: object, **options: object) -> None:
            raise OSError(number, os.strerror(number))

        return failing

    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="file cannot be written: it is no folder"):
        write_family(Family("phone", TREE, artifact), tmp_path / "file")
    for name, number, words in (
        ("mkdir", errno.EROFS, "Read-only file system"),
        ("rename", errno.EACCES, "Permission denied"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail(number))
            with pytest.raises(RepositoryError, match=f"models cannot be written: {words}"):
                write_family(Family("phone", TREE, artifact), tmp_path / "models")
        assert not (tmp_path / "models").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", fail(errno.ENOSPC))
        with pytest.raises(RepositoryError, match="models cannot be written: No space left on device"):
            write_family(Family("phone", TREE, artifact), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_half_of_a_family_is_taken_back(tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, moved = Path.rename, list[Path]()

    def second_fails(path: Path, target: Path) -> object:
        moved.append(target)
        if len(moved) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    write_family(Family("chat", TREE, artifact), tmp_path / "models")
    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(RepositoryError, match="Input/output error"):
        write_family(Family("phone", TREE, artifact), tmp_path / "models")
    assert [names.ensemble for names in families(tmp_path / "models")] == ["chat"]
    assert not list((tmp_path / "models").glob("*phone*"))


def test_what_a_killed_one_left_is_removed(tmp_path: Path, artifact: Path) -> None:
    left, living = (tmp_path / f".models-phone.partial-{pid}" for pid in (4_194_305, 1))
    for folder in (left, living):
        (folder / "phone-engine").mkdir(parents=True)
    write_family(Family("phone", TREE, artifact), tmp_path / "models")
    assert not left.exists() and living.exists()


@pytest.mark.parametrize(("beside", "place"), [(True, ""), (False, "models")])
def test_a_half_written_model_is_kept_out_of_the_repository_where_that_can_be(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch, beside: bool, place: str
) -> None:
    """Triton 2.51 does not start over a hidden folder that is no model."""
    rename, stages = Path.rename, set[Path]()

    def noted(path: Path, target: Path) -> object:
        stages.add(path.parent.parent.relative_to(tmp_path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", noted)
    monkeypatch.setattr(os, "access", lambda path, mode: beside)
    write_family(Family("phone", TREE, artifact), tmp_path / "models")
    assert stages == {Path(place)}
    assert [path.name for path in tmp_path.rglob("*.partial-*")] == []


# ---- the command


def test_the_command_writes_settings_of_one_model(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "phone.toml").write_text(
        "max_queue = 7\ncache_sampled = true\nexit_with_engine = false\nnum_threads = 2\n"
    )
    result = cli(
        tmp_path / "m", "--name", "phone", "--artifact", artifact, "--config", tmp_path / "phone.toml", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["models"] == ["phone-tokenizer", "phone-engine", "phone-detokenizer", "phone"]
    assert cli(tmp_path / "m", "--name", "chat", "--artifact", artifact, "--link").exit_code == 0
    phone, chat = (serving_settings(tmp_path / "m", {}, {}, model=name) for name in ("phone", "chat"))
    assert (phone.max_queue, phone.cache_sampled, phone.exit_with_engine, phone.num_threads) == (7, True, False, 2)
    assert (chat.max_queue, chat.cache_sampled, chat.exit_with_engine, chat.num_threads) == (512, False, True, 0)
    assert (phone.redis_prefix, chat.redis_prefix) == ("phone", "chat")


@pytest.mark.parametrize(
    ("arguments", "file", "sentence"),
    [
        (["--name", "a b"], "", "the name is 'a b'; allowed are 1 to 48 letters, digits, . _ and -"),
        (
            ["--name", "phone-engine"],
            "",
            "it must not be, or end with -, tokenizer, engine, detokenizer, embedder or vision",
        ),
        (["--artifact", "/nowhere"], "", "there is no exported model at /nowhere; make one with `autoglm export`"),
        (["--embedder", "/nowhere"], "", "/nowhere is no exported embedder"),
        (["--source", "/nowhere"], "", "there is no model repository at /nowhere"),
        ([], "max_queu = 7", "there is no setting 'max_queu'"),
        ([], "max_batch_size = 5", "the setting max_batch_size is 5; it must be between 0 and 4"),
        (
            [],
            'redis_url = "redis://a"',
            "the setting redis_url cannot be one model's: Triton shows config.pbtxt to anybody",
        ),
        ([], "prefetch_factor = 3", "the setting prefetch_factor cannot be one model's: it is of the autoglm commands"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    tmp_path: Path, artifact: Path, arguments: list[str], file: str, sentence: str
) -> None:
    (tmp_path / "a.toml").write_text(file)
    named = ["--name", "phone", "--artifact", artifact, "--config", tmp_path / "a.toml", *arguments]
    result = cli(tmp_path / "m", *named)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert not (tmp_path / "m").exists()


def test_its_help_has_examples_and_the_range_of_names() -> None:
    shown = re.sub(r"\s+", " ", cli("--help").stdout)
    assert "autoglm repository models --name phone --artifact build/phone" in shown
    assert "up to 48 letters, digits, . _ and -" in shown


# ---- models that stand alone


def test_a_model_that_stands_alone_carries_code_and_texts(artifact: Path, tmp_path: Path) -> None:
    assert cli(tmp_path / "models", "--artifact", artifact, "--alone").exit_code == 0
    package = {
        path.relative_to(TREE / "engine" / "1" / "autoglm_engine")
        for path in (TREE / "engine" / "1" / "autoglm_engine").rglob("*.py")
    }
    for model in ("tokenizer", "detokenizer", "engine"):
        version = tmp_path / "models" / model / "1"
        assert {
            path.relative_to(version / "autoglm_engine") for path in (version / "autoglm_engine").rglob("*.py")
        } == package
        assert (version / "artifact" / "manifest.json").read_bytes() == (artifact / "manifest.json").read_bytes()
    texts = {path.name for path in (tmp_path / "models" / "tokenizer" / "1" / "artifact").iterdir()}
    templates = {artifact_texts.TEMPLATE_NAME, artifact_texts.TOOL_TEMPLATE_NAME}
    assert texts <= set(repository_writer._TEXTS) == {artifact_texts.TOKENIZER_NAME, *templates, MANIFEST_NAME}
    assert not list((tmp_path / "models" / "autoglm" / "1").glob("*.py"))


@pytest.mark.parametrize("name", ["autoglm", "phone"])
def test_a_model_that_was_fetched_alone_finds_its_artifact_in_its_own_folder(
    artifact: Path, tmp_path: Path, name: str
) -> None:
    write_family(Family(name, TREE, artifact, alone=True), tmp_path / "models")
    names = ModelNames.of(name)
    for number, model in enumerate((names.tokenizer, names.engine, names.detokenizer)):
        alone = tmp_path / f"folder{number}"  # a name that is not the model's, as Triton makes them
        (tmp_path / "models" / model).rename(alone)
        text = json_format.MessageToJson(config(alone / "config.pbtxt"), preserving_proto_field_name=True)
        found = Neighbours.of(text).artifact_folder(alone, {})
        assert found == alone / "1" / "artifact" and (found / "manifest.json").is_file()
