"""An output appears whole or not at all, and a server that polls the folders around it sees one change: the
exchange."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from autoglm_export import artifact_writer as staging
from autoglm_export.artifact_writer import staged
from autoglm_export.errors import ExportError


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """In a model repository, where an artifact lies."""
    output = tmp_path / "models" / "engine" / "1" / "artifact"
    output.mkdir(parents=True)
    (tmp_path / "models" / "engine" / "config.pbtxt").write_text("")
    (output / "manifest.json").write_text("old")
    return output


def export(output: Path, content: str = "new", during: Callable[[], object] = lambda: None) -> None:
    with staged(output) as folder:
        (folder / "manifest.json").write_text(content)
        during()


def test_nothing_is_staged_inside_of_a_model_repository(output: Path, tmp_path: Path) -> None:
    before, seen = tree(tmp_path / "models"), list[list[str]]()
    modified = (output.parent).stat().st_mtime_ns
    export(output, during=lambda: seen.append([*tree(tmp_path / "models"), str(output.parent.stat().st_mtime_ns)]))
    assert seen == [[*before, str(modified)]]
    assert (output / "manifest.json").read_text() == "new"
    assert output.parent.stat().st_mtime_ns > modified, "a poll would not see that something changed"
    assert tree(tmp_path) == sorted(["models", *(f"models/{name}" for name in before)]), "something is left"


def test_two_outputs_of_one_repository_are_staged_apart(output: Path, tmp_path: Path) -> None:
    other = tmp_path / "models" / "embedder" / "1" / "artifact"
    other.parent.mkdir(parents=True)
    (tmp_path / "models" / "embedder" / "config.pbtxt").write_text("")
    with staged(output) as one, staged(other) as two:
        assert one != two and one.parent == two.parent == tmp_path
        for folder in (one, two):
            (folder / "manifest.json").write_text(str(folder))
    assert (output / "manifest.json").read_text() == str(one) and (other / "manifest.json").read_text() == str(two)


def test_somewhere_else_the_stage_is_beside_the_output(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as folder:
        assert folder.parent == tmp_path / "deep"
        (folder / "manifest.json").write_text("new")
    assert tree(tmp_path) == ["deep", "deep/out", "deep/out/manifest.json"]


def test_where_a_repository_cannot_be_left_the_stage_is_beside_the_output(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a mount of its own, or what is around it is read-only."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with staged(output) as folder:
        assert folder.parent == output.parent
        (folder / "manifest.json").write_text("new")
    assert tree(output.parent) == ["artifact", "artifact/manifest.json"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_export_that_fails_leaves_what_was_there(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    before = tree(tmp_path)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ExportError, match="No space left"):
        export(output, during=fail)
    assert (tree(tmp_path), (output / "manifest.json").read_text()) == (before, "old")
    export(output)
    assert (tree(tmp_path), (output / "manifest.json").read_text()) == (before, "new")


def test_at_no_moment_is_there_no_artifact(output: Path) -> None:
    missing, stopping = list[int](), threading.Event()

    def look() -> None:
        while not stopping.is_set():
            try:
                (output / "manifest.json").read_text()
            except FileNotFoundError:
                missing.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(100):
        export(output, str(number))
    stopping.set()
    thread.join()
    assert not missing


def test_what_a_dead_export_left_beside_the_repository_goes_with_the_next(output: Path, tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".models-engine-1-artifact.partial-{pid}" for pid in (2**22 + 1, os.getppid()))
    dead.mkdir()
    alive.mkdir()
    export(output)
    assert alive.exists() and not dead.exists()
