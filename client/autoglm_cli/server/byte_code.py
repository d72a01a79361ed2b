"""The models' byte code, made before a server looks at their folders.

Models write it there when they are first imported. A server that polls its model repository takes that for a change,
and loads each of them once more at its start. The stub of tritonserver 2.51 is an isolated interpreter, which does not
look at PYTHONDONTWRITEBYTECODE.
"""

from __future__ import annotations

import compileall
from pathlib import Path

_LEVELS = 6  # below the repository: MODEL/VERSION/PACKAGE, and its own packages


def compile_models(repository: Path) -> None:
    """What is up to date stays as it is. Where nothing can be written, models write nothing either."""
    compileall.compile_dir(repository, maxlevels=_LEVELS, quiet=2)
