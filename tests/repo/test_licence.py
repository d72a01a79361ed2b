"""The licence is said in each place where tools and people look for it."""

from __future__ import annotations

import hashlib
import tomllib

from tests.support.export.artifacts import ROOT


def test_the_licence_is_there_as_it_was_written_and_named() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert (
        b"Apache License" in text
        and hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "[Apache-2.0](LICENSE)" in (ROOT / "README.md").read_text()
