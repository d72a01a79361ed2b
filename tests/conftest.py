"""Fixtures that cost something: one exported model and one real server a session."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from math import isnan
from pathlib import Path

import pytest
from autoglm_client.local_server import LocalServer
from autoglm_export.embedder import BUNDLED_EMBEDDER, export_embedder
from autoglm_export.export import export

ROOT = Path(__file__).parent.parent
MODEL_REPOSITORY = ROOT / "model_repository"
_SOURCES = ("export/autoglm_export", "model_repository/engine/1/autoglm_engine")

# (family, precision) -> relative L2 against transformers: of the lowering itself, and with the precision's rounding
ParityTable = dict[tuple[str, str], tuple[float, float]]
_PARITY = pytest.StashKey[ParityTable]()
_ENGINE_SOURCES = ("manifest.py", "native_runner.py", "onnx_runner.py", "load.py")


@pytest.fixture(scope="session")
def artifact() -> Path:
    """SmolLM2-135M-Instruct in int8 on the native kernels. It is kept in build/ for as long as the exporter is the same."""
    folder = ROOT / "build" / "test-artifacts"
    output = folder / f"smollm2-{_exporter_digest()}"
    if not output.exists():
        for stale in folder.glob("smollm2-*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        export("smollm2", output, runtime="native")  # not what is faster on this machine today
    return output


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled sentence-embedding model, exported."""
    output = tmp_path_factory.mktemp("embedder") / "artifact"
    export_embedder(BUNDLED_EMBEDDER, output)
    return output


@pytest.fixture(scope="session")
def server(artifact: Path) -> Iterator[LocalServer]:
    """The real tritonserver with the real model. What a test breaks, it must start for itself. Its answers are computed
    each time, since tests ask the same again: test_cache_server.py has a server with the cache."""
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env={"AUTOGLM_CACHE_MODE": "off"}) as running:
        yield running


def _exporter_digest() -> str:
    exporter = [path for path in sorted((ROOT / _SOURCES[0]).rglob("*")) if path.suffix in (".py", ".cpp", ".h")]
    engine = [path for name in _ENGINE_SOURCES if (path := ROOT / _SOURCES[1] / name).exists()]
    content = b"".join(path.read_bytes() for path in exporter + engine)
    return hashlib.sha256(content).hexdigest()[:16]


@pytest.fixture(scope="session")
def parity_table(request: pytest.FixtureRequest) -> ParityTable:
    """What is put into it is printed as one table after the tests."""
    return request.config.stash.setdefault(_PARITY, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not (table := config.stash.get(_PARITY, {})):
        return
    terminalreporter.section("TensorRT networks against transformers, relative L2 of logits: lowering | as typed")
    precisions = list(dict.fromkeys(precision for _, precision in table))
    terminalreporter.line(" " * 10 + "".join(f"{precision:>22}" for precision in precisions))
    for family in dict.fromkeys(family for family, _ in table):
        cells = [table.get((family, precision)) for precision in precisions]
        shown = [
            "" if cell is None else " | ".join("-" if isnan(part) else f"{part:.1e}" for part in cell) for cell in cells
        ]
        terminalreporter.line(f"{family:<10}" + "".join(f"{cell:>22}" for cell in shown))
