"""A model's file and the package that it finds are of one release, wherever the package lies."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from autoglm_engine.errors import EngineError
from autoglm_engine.release import RELEASE, check_release

from tests.support.export.artifacts import ROOT

MODELS = [
    ROOT / "model_repository" / name / "1" / "model.py"
    for name in ("tokenizer", "engine", "detokenizer", "embedder", "vision")
]
# What Triton does: the model's file is loaded, and told where its folder is. -I: nothing of this project is on the
# path.
_LOAD = """
import json, sys, types
sys.modules["numpy"] = types.ModuleType("numpy")
backend = sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
model, installed = sys.argv[1:]
sys.path.append(installed)
space = {"__name__": "model"}
exec(compile(open(model + "/1/model.py").read(), "model.py", "exec"), space)
args = {"model_name": "tokenizer", "model_repository": model, "model_config": json.dumps({})}
try:
    space["find_package"](args)
    print(sys.modules["autoglm_engine"].__file__)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def load(model: Path, installed: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-ISc", _LOAD, str(model), str(installed)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A tokenizer that nothing lies beside."""
    (tmp_path / "alone" / "tokenizer" / "1").mkdir(parents=True)
    shutil.copy(MODELS[0], tmp_path / "alone" / "tokenizer" / "1")
    return tmp_path / "alone" / "tokenizer"


def package(folder: Path, release: str | None = RELEASE) -> Path:
    """A package that has nothing but a release; None: an old one, without."""
    (folder / "autoglm_engine").mkdir(parents=True)
    (folder / "autoglm_engine" / "__init__.py").touch()
    if release:
        source = (ROOT / "model_repository" / "engine" / "1" / "autoglm_engine" / "release.py").read_text()
        text = re.sub("^RELEASE = .*$", f'RELEASE = "{release}"', source, flags=re.MULTILINE)
        (folder / "autoglm_engine" / "release.py").write_text(text)
        (folder / "autoglm_engine" / "errors.py").write_text("class EngineError(Exception): pass")
    return folder


def test_the_release_is_the_projects() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == RELEASE
    assert all(f'RELEASE = "{RELEASE}"' in model.read_text() for model in MODELS)


def test_all_models_find_the_package_alike() -> None:
    found = [
        node
        for model in MODELS
        for node in ast.parse(model.read_text()).body
        if getattr(node, "name", "") == "find_package"
    ]
    assert len(found) == len(MODELS)
    assert len({ast.dump(node) for node in found}) == 1


def test_another_release_is_refused_in_one_sentence() -> None:
    check_release("tokenizer", RELEASE)
    with pytest.raises(
        EngineError, match=rf"tokenizer is of release 9\.9, and the package at /.* is of {RELEASE}; use one of both"
    ):
        check_release("tokenizer", "9.9")


def test_the_repositorys_package_goes_before_an_installed_one(alone: Path, tmp_path: Path) -> None:
    installed = package(tmp_path / "installed", "0.0.1")
    beside = package(alone.parent / "engine" / "1")
    assert load(alone, installed) == str(beside / "autoglm_engine" / "__init__.py")
    own = package(alone / "1")
    assert load(alone, installed) == str(own / "autoglm_engine" / "__init__.py")


def test_an_installed_package_serves_a_model_that_stands_alone(alone: Path, tmp_path: Path) -> None:
    assert load(alone, package(tmp_path / "installed")) == str(
        tmp_path / "installed" / "autoglm_engine" / "__init__.py"
    )


@pytest.mark.parametrize(
    ("release", "sentence"),
    [
        (
            "0.0.1",
            (
                rf"EngineError: tokenizer is of release {RELEASE}, and the package at "
                r"/.*/installed/autoglm_engine is of 0\.0\.1"
            ),
        ),
        (
            None,
            (
                f"RuntimeError: there is no package autoglm_engine {RELEASE}: neither in /.*/tokenizer/1 nor in "
                "/.*/engine/1, and not installed"
            ),
        ),
    ],
)
def test_an_old_package_or_none_is_one_sentence(
    alone: Path, tmp_path: Path, release: str | None, sentence: str
) -> None:
    assert re.match(sentence, load(alone, package(tmp_path / "installed", release)))
    assert "\n" not in load(alone, tmp_path / "nothing")
