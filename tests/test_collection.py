"""Files that are not collected have no test that was asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest
from tests.support.export.artifacts import ROOT
from tests.support.repo.file_scheduling import LONG_FILES, next_file

SERVER_HALF = "server and not gpu and not hostile"
OTHER_HALF = "not server and not gpu and not hostile"
WHOLE = "not gpu and not hostile"
MARKED = "import pytest\n\n@pytest.mark.server\ndef test_it(): ...\n"


def is_left_out(path: Path, expression: str) -> bool | None:
    config = SimpleNamespace(option=SimpleNamespace(markexpr=expression))
    return conftest.pytest_ignore_collect(path, config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (SERVER_HALF, True),
        ("server", True),
        (OTHER_HALF, None),
        ("", None),
        ("server or parity", None),
        ("server and not gpu or parity", None),
        ("server_like", None),
    ],
)
def test_a_file_without_the_mark_is_left_out_of_the_server_half_alone(
    expression: str, expected: bool | None, tmp_path: Path
) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    (tmp_path / "test_other.py").write_text("def test_it(): ...\n")
    assert is_left_out(tmp_path / "test_other.py", expression) is expected
    assert is_left_out(tmp_path / "test_marked.py", expression) is None
    assert is_left_out(tmp_path, expression) is None


def test_the_makefile_asks_for_the_whole() -> None:
    assert re.findall(r'--dist loadfile -m "(.*)"', (ROOT / "Makefile").read_text()) == [WHOLE]


def test_a_mark_is_given_where_it_can_be_read() -> None:
    """Nothing gives one to another file's tests."""
    sources = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    hooks = ("add_marker", "pytest_collection_modifyitems", "pytest_itemcollected")
    assert [path.name for path in sources if any(hook in path.read_text() for hook in hooks)] == []


# ---- which process runs which file


def test_the_long_files_are_there() -> None:
    assert [name for name in LONG_FILES if not (ROOT / name).is_file()] == []


def test_a_process_takes_the_longest_file_of_its_kind_and_then_any() -> None:
    waiting, servers = ["a", "b", LONG_FILES[1], "c", LONG_FILES[0]], frozenset({"b", "c"})
    assert next_file(waiting, servers, prefers_servers=True) == "b"
    assert next_file(waiting, servers, prefers_servers=False) == LONG_FILES[0]
    assert next_file(["a", LONG_FILES[1]], servers, prefers_servers=True) == LONG_FILES[1]
    assert next_file(["c"], servers, prefers_servers=False) == "c"


FILES = {"test_a.py": 3, "test_b.py": 1, "test_server_a.py": 2, "test_server_b.py": 1}
RUN = "import pytest\n\n{mark}@pytest.mark.parametrize('n', range({count}))\ndef test_it(n): ...\n"


@pytest.mark.slow
def test_every_test_runs_once_and_files_stay_whole(tmp_path: Path) -> None:
    """Two processes; the second begins with the files of servers."""
    for name, count in FILES.items():
        mark = "@pytest.mark.server\n" if "server" in name else ""
        (tmp_path / name).write_text(RUN.format(mark=mark, count=count))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  server: starts one\n")
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler\n")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "xdist", "-n", "2", "--dist", "loadfile", "."]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "7 passed" in done.stdout, done.stdout + done.stderr
    ran = re.findall(r"\[(gw\d)\] .* PASSED (\S+\.py)::(\S+)", done.stdout)
    assert len({(file, test) for _, file, test in ran}) == sum(FILES.values())
    assert all(len({process for process, file, _ in ran if file == name}) == 1 for name in FILES)
    assert next(file for process, file, _ in ran if process == "gw1") == "test_server_a.py"
