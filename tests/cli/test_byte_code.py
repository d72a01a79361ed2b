"""The models' byte code is there before a server that polls looks at their folders, and is what they would write
themselves."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from autoglm_cli.server.byte_code import compile_models


def test_modules_are_compiled_once_and_nothing_is_written_when_they_are_imported(tmp_path: Path) -> None:
    package = tmp_path / "engine" / "1" / "package"
    package.mkdir(parents=True)
    sources = [package.parent / "model.py", package / "__init__.py", package / "part.py"]
    for path in sources:
        path.write_text("import package.part\n" if path.name == "model.py" else "")
    (package / "broken.py").write_text("def\n")
    compile_models(tmp_path)
    compiled = [Path(importlib.util.cache_from_source(path)) for path in map(str, sources)]
    times = [path.stat().st_mtime_ns for path in compiled]
    folders = sorted(path for path in tmp_path.rglob("*"))
    command = f"import sys; sys.path.insert(0, {str(package.parent)!r}); import model"
    subprocess.run([sys.executable, "-I", "-c", command], check=True)
    compile_models(tmp_path)
    assert [path.stat().st_mtime_ns for path in compiled] == times
    assert sorted(path for path in tmp_path.rglob("*")) == folders
