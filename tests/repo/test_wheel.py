"""What the wheel carries, and that an installation of it finds its model repository. `make test-wheel` serves with
it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from autoglm_cli import home

from tests.support.export.artifacts import ROOT
from tests.support.repo.wheels import build_wheel, model_files, unpack

TREE = ROOT / "model_repository"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a wheel is unpacked that was built while artifacts lay in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    return unpack(build_wheel(folder), folder / "site")


def python(site: Path, folder: Path, code: str) -> str:
    """Of an interpreter that sees the wheel's packages before those of this checkout."""
    paths = f"import sys; sys.path.insert(0, {str(site)!r}); "
    environment = {**os.environ, "PYTHONPATH": "", "AUTOGLM_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-c", paths + code], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_file_of_the_model_repository_is_in_it_byte_for_byte(site: Path) -> None:
    carried = site / "autoglm_model_repository"
    found = sorted(str(path.relative_to(carried)) for path in carried.rglob("*") if path.is_file())
    assert found == model_files() and "engine/config.pbtxt" in found and "vllm_model/1/.gitkeep" in found
    assert all((carried / name).read_bytes() == (TREE / name).read_bytes() for name in found)


def test_the_engine_is_in_it_once_and_whole(site: Path) -> None:
    source = TREE / "engine" / "1" / "autoglm_engine"
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.py"))
    assert (
        sorted(str(path.relative_to(site / "autoglm_engine")) for path in site.rglob("autoglm_engine/**/*.py")) == names
    )
    assert all((site / "autoglm_engine" / name).read_bytes() == (source / name).read_bytes() for name in names)


def test_no_artifact_and_nothing_that_was_made_here_is_in_it(site: Path) -> None:
    parts = {part for path in site.rglob("*") for part in path.relative_to(site).parts}
    assert not parts & {"artifact", "__pycache__", "manifest.json"}
    known = {
        "autoglm_client",
        "autoglm_cli",
        "autoglm_engine",
        "autoglm_export",
        "autoglm_gateway",
        "autoglm_model_repository",
    }
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == known


def test_its_commands_find_its_repository(site: Path, tmp_path: Path) -> None:
    code = "from autoglm_cli.paths import artifact_folder, repository_folder; import pathlib; "
    code += "print(repository_folder(None)); print(artifact_folder(None, repository_folder(None)))"
    repository, artifact = python(site, tmp_path, code).splitlines()
    assert Path(repository) == site / "autoglm_model_repository"
    assert Path(artifact) == tmp_path / "home" / "models" / "smollm2"


def test_its_models_find_its_engine(site: Path, tmp_path: Path) -> None:
    """As Triton loads them: beside the model there is none, so it is the installed one, of the same release."""
    code = "import json, types; sys.modules['triton_python_backend_utils'] = types.ModuleType('x'); "
    code += "sys.modules['triton_python_backend_utils'].TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1; "
    code += f"folder = {str(site / 'autoglm_model_repository' / 'tokenizer')!r}; space = {{'__name__': 'model'}}; "
    code += "exec(open(folder + '/1/model.py').read(), space); "
    code += "space['find_package']({'model_name': 'tokenizer', 'model_repository': folder, 'model_config': '{}'}); "
    code += "print(sys.modules['autoglm_engine'].__file__)"
    assert python(site, tmp_path, code) == str(site / "autoglm_engine" / "__init__.py")


def test_models_are_where_the_system_keeps_a_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOGLM_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home.models_folder() == tmp_path / "autoglm-triton" / "models"
    monkeypatch.setenv("AUTOGLM_HOME", "~/elsewhere")
    assert home.models_folder() == Path.home() / "elsewhere" / "models"


def test_the_docs_name_it(site: Path) -> None:
    (metadata,) = site.glob("autoglm_triton-*.dist-info")
    name = f"{metadata.stem}-py3-none-any.whl"
    assert all(name in (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/serving/running.md"))
