"""Files that are not collected have no test that was asked for."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest
from tests.support.export.artifacts import ROOT

SERVER_HALF = "server and not gpu and not hostile"
OTHER_HALF = "not server and not gpu and not hostile"
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


def test_the_makefile_asks_for_both_halves() -> None:
    asked = re.findall(r'-m "([^"]*server[^"]*hostile)"', (ROOT / "Makefile").read_text())
    assert asked == [OTHER_HALF, SERVER_HALF]


def test_a_mark_is_given_where_it_can_be_read() -> None:
    """Nothing gives one to another file's tests."""
    sources = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    hooks = ("add_marker", "pytest_collection_modifyitems", "pytest_itemcollected")
    assert [path.name for path in sources if any(hook in path.read_text() for hook in hooks)] == []
