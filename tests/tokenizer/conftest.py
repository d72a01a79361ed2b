"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

Children = Callable[[], list[psutil.Process]]


@pytest.fixture(autouse=True)
def children() -> Children:
    """The processes that were started by this one since the test began: others keep servers."""
    this = psutil.Process()
    before = {child.pid for child in this.children()}
    return lambda: [child for child in this.children() if child.pid not in before]
