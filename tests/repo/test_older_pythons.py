"""The model repository and the client run on Python 3.10: `make lint` looks at their types and syntax as 3.10 has them.
Here is what that cannot see; `make test-pythons` runs other interpreters."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from autoglm_client.transport import time_limit
from autoglm_engine.cache.redis import tier as redis_tier
from autoglm_engine.manifest import FileRecord
from packaging.requirements import Requirement

from tests.by_hand import pythons
from tests.support.export.artifacts import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
_IMPORTS = """
import importlib, pkgutil, sys
sys.modules["tomllib"] = None  # as if it were not there
for package in ("autoglm_engine", "autoglm_client", "autoglm_cli"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def test_no_module_of_the_models_or_the_client_needs_a_parser_of_toml_to_be_loaded() -> None:
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1_000_000])
def test_a_file_is_summed_up_whole(tmp_path: Path, size: int) -> None:
    content = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert FileRecord.of(tmp_path / "file") == FileRecord(size, hashlib.sha256(content).hexdigest())


def test_time_outs_are_named_as_every_version_has_them() -> None:
    """Until 3.11 neither of the two was an OSError, nor the built-in TimeoutError."""
    assert {asyncio.TimeoutError, concurrent.futures.TimeoutError} <= set(redis_tier._FAILURES)
    assert time_limit.LimitPassed is asyncio.TimeoutError


def test_the_client_asks_for_what_older_pythons_lack() -> None:
    older = {"python_version": "3.10", "extra": ""}
    newer = older | {"python_version": "3.11"}
    needs = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    conditional = {need.name for need in needs if need.marker}
    assert conditional == {"async-timeout", "tomli"}
    assert all(need.marker.evaluate(older) and not need.marker.evaluate(newer) for need in needs if need.marker)


def test_what_other_pythons_run_is_there() -> None:
    names = [f"test_{name}.py" for name in pythons.TESTS] + [pythons.SERVER_TESTS]
    assert [name for name in names if len(list((ROOT / "tests").rglob(name))) != 1] == []
    pins = PROJECT["project"]["optional-dependencies"]["serve"]
    assert pythons.ALONE[0] in pins and pythons.NUMPY_OF_TRITON in pins
