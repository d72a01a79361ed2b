"""Fixtures that cost something: one exported model and one real server a session."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_export.checkpoint.bundled import resolve
from autoglm_export.embedder.export import BUNDLED_EMBEDDER, export_embedder
from autoglm_export.parity.reference import Reference
from hypothesis import HealthCheck, settings

from tests.support.export.artifacts import ROOT, kept_export, kept_reference
from tests.support.export.remembered_reference import RememberedReference
from tests.support.export.tiny_glm4v import write_tiny_glm4v

# No test fails because a machine is slow.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

MODEL_REPOSITORY = ROOT / "model_repository"

_SERVER_ALONE = re.compile(r"server( and not \w+)*")  # a marker expression that wants the real server's tests

# (family, precision) -> relative L2 against transformers: of the lowering itself, and with the precision's rounding
ParityTable = dict[tuple[str, str], tuple[float, float]]
_PARITY = pytest.StashKey[ParityTable]()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where the real server's tests alone are asked for, no other file is imported: that takes longer than many tests,
    and each process would do it."""
    if collection_path.suffix != ".py" or not _SERVER_ALONE.fullmatch(config.option.markexpr):
        return None
    return True if "mark.server" not in collection_path.read_text() else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    if config.getoption("dist") != "loadfile":
        return None
    from tests.support.repo.file_scheduling import TwoKindsOfFiles

    return TwoKindsOfFiles(config, log)


@pytest.fixture(scope="session")
def artifact() -> Path:
    """SmolLM2-135M-Instruct in int8 on the native runtime, not on what is faster on this machine today."""
    return kept_export("native", runtime="native")


@pytest.fixture(scope="session")
def exact_artifact() -> Path:
    """The same model in float32 on ONNX Runtime: what is compared with it is not the rounding of weights."""
    return kept_export("exact", runtime="onnx", precision="fp32")


@pytest.fixture(scope="session", autouse=True)
def one_reference() -> Iterator[None]:
    """transformers takes 20 seconds to read SmolLM2's file: one process reads it, and answers a question once."""
    load: Callable[[Path], Reference] = Reference.load
    bundled, shared = resolve("smollm2")[0], dict[Path, Reference]()

    def shared_load(checkpoint: Path) -> Reference:
        if checkpoint != bundled:
            return load(checkpoint)
        if bundled not in shared:
            kept = kept_reference(bundled, lambda path: load(path).model)
            shared[bundled] = RememberedReference.of(load(kept))
        return shared[bundled]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reference, "load", shared_load)
        yield


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled sentence-embedding model, exported."""
    output = tmp_path_factory.mktemp("embedder") / "artifact"
    export_embedder(BUNDLED_EMBEDDER, output)
    return output


@pytest.fixture(scope="session")
def tiny_glm4v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random checkpoint that takes images; `write_tiny_glm4v` says what is in it."""
    folder = tmp_path_factory.mktemp("tiny-glm4v") / "checkpoint"
    write_tiny_glm4v(folder)
    return folder


@pytest.fixture(scope="session")
def server(artifact: Path) -> Iterator[LocalServer]:
    """The real tritonserver with the real model. What a test breaks, it must start for itself. Its answers are computed
    each time, since tests ask the same again: test_cache_server.py has a server with the cache."""
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env={"AUTOGLM_CACHE_MODE": "off"}) as running:
        yield running


@pytest.fixture(scope="session")
def parity_table(request: pytest.FixtureRequest) -> ParityTable:
    """What is put into it is printed as one table after the tests."""
    return request.config.stash.setdefault(_PARITY, {})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that runs a part of the tests hands its table to the one that prints."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["parity"] = [[*key, *value] for key, value in session.config.stash.get(_PARITY, {}).items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    table = node.config.stash.setdefault(_PARITY, {})
    for family, precision, lowering, typed in getattr(node, "workeroutput", {}).get("parity", []):
        table[family, precision] = (lowering, typed)


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
