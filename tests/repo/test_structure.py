"""docs/structure.md and CONTRIBUTING.md name what there is; no folder is crowded, no function long, no rule of
ruff's silenced in a line."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.export.artifacts import ROOT

MAX_FILES = 20  # of a folder
MAX_LINES = 49
PACKAGES = {
    "model_repository/engine/1/autoglm_engine/": "model_repository/engine/1/autoglm_engine",
    "export/autoglm_export/": "export/autoglm_export",
    "client/": "client",
    "gateway/autoglm_gateway/": "gateway/autoglm_gateway",
    "perf/autoglm_perf/": "perf/autoglm_perf",
    "deploy/": "deploy",
}
STRUCTURE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def files() -> list[Path]:
    """What git has, or would have."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).exists()]


def section(heading: str) -> str:
    return next(part for part in STRUCTURE.split("\n## ") if part.startswith(f"`{heading}`"))


def packages(folder: Path) -> set[str]:
    """Folders below `folder` that hold files of ours."""
    below = {path.parent.relative_to(folder).as_posix() for path in files() if path.is_relative_to(folder)}
    return {f"{name}/" for name in below if name != "."}


@pytest.mark.parametrize(("heading", "folder"), PACKAGES.items(), ids=PACKAGES)
def test_each_package_has_its_line_and_each_line_its_package(heading: str, folder: str) -> None:
    named = {name for name in re.findall(r"`([\w/]+/)`", section(heading)) if name != heading}
    assert named == packages(ROOT / folder)


@pytest.mark.parametrize("text", [STRUCTURE, CONTRIBUTING], ids=["structure", "contributing"])
def test_each_file_that_is_named_exists(text: str) -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_life_of_a_request_has_eight_steps_of_one_file_each() -> None:
    life = STRUCTURE.split("\n## ")[1]
    steps = re.findall(r"^\d\. (.*)$", life, flags=re.MULTILINE)
    assert len(steps) == 8
    assert all(len(re.findall(r"`[\w/]+\.py`", step)) == 1 for step in steps)


def test_no_folder_holds_more_than_a_person_takes_in() -> None:
    ours = [
        path
        for path in files()
        if re.match(r"(model_repository|client|export|gateway|perf|deploy|docs|tests)/", str(path.relative_to(ROOT)))
    ]
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in ours)
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each with its lines, decorators and docstring included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(line.lineno for line in [node, *node.decorator_list])
            yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or first) - first + 1


def sources() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


def test_no_function_of_the_product_is_longer_than_a_screen() -> None:
    products = re.compile(r"(model_repository|client|export|gateway|perf|deploy)/")
    ours = [path for path in sources() if products.match(str(path.relative_to(ROOT)))]
    lengths = [found for path in ours for found in functions(path)]
    assert len(lengths) > 1000
    assert [(name, lines) for name, lines in lengths if lines > MAX_LINES] == []


def test_no_line_silences_a_rule_of_ruffs() -> None:
    """A rule that does not fit has its exception, and the reason for it, in pyproject.toml."""
    silenced = re.compile(r"#\s*no" "qa", re.IGNORECASE)
    assert [str(path) for path in sources() if silenced.search(path.read_text(encoding="utf-8"))] == []
