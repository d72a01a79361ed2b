"""What LocalServer says when something is wrong. The running server is tested in test_server.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from autoglm_client import triton_install
from autoglm_client.exceptions import LocalServerError
from autoglm_client.local_server import LocalServer
from autoglm_client.server_log import ending_error, last_line, startup_error

STARTED = """\
W1123 21:25:46.1 20973 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory: CUDA driver"
E1123 21:25:46.2 20973 ensemble_scheduler.cc:1468] "unable to create stream: CUDA driver version is insufficient"
Error: Failed to initialize NVML
I1123 21:25:46.3 20973 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:1"
"""
RAISED = (
    'I1123 21:45:24.3 328 pb_stub.cc:366] "Failed to initialize Python stub: ArtifactError: no artifact at /a: '
    'it is missing\\n\\nAt:\\n  /m/manifest.py(82): load\\n"\n'
    "E1123 21:45:24.5 328 model_lifecycle.cc:642] \"failed to load 'engine' version 1: Internal: ArtifactError: x\"\n"
)
NOT_LOADED = (
    "E1123 21:45:24.5 3 model_lifecycle.cc:642] \"failed to load 'engine' version 1: Invalid argument: bad config\"\n"
)
NO_PORT = "E1123 21:45:24.5 3 main.cc:535] \"failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already in use\"\n"
DIED = "Error: the engine's process died: the server ends\nSignal (15) received.\n"
EXIT = 'E1123 21:48:57.5 3058 main.cc:535] "failed to stop server: Internal - Exit timeout expired."\n'


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (STARTED + RAISED, "no artifact at /a: it is missing"),
        (STARTED + NOT_LOADED, "the model engine failed to load: Invalid argument: bad config"),
        (STARTED + NO_PORT, "failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already in use"),
        (STARTED, "Started GRPCInferenceService at 127.0.0.1:1"),
        ("", "it wrote no log"),
    ],
)
def test_the_reason_is_found_in_the_log(log: str, sentence: str) -> None:
    assert startup_error(log) == sentence


def test_the_reason_of_an_end() -> None:
    assert ending_error(STARTED + DIED + EXIT) == "the engine's process died: the server ends"
    assert ending_error(STARTED + "Signal (15) received.\n") == "Signal (15) received."
    assert ending_error("fine\nCudaDriverHelper has not been initialized.\n") == "fine"
    pinned = "E1123 21:48:57.5 3 x.cc:1] failed to allocate pinned system memory: no pinned memory pool"
    assert ending_error(f"{pinned}\nNon-graceful termination detected.\n") == "Non-graceful termination detected."
    assert last_line("") == ""


def test_chosen_ports_differ() -> None:
    server = LocalServer("x", http_port=0, grpc_port=0, metrics_port=0)
    ports = {server.http_port, server.grpc_port, server.metrics_port}
    assert len(ports) == 3
    assert 0 not in ports
    assert LocalServer("x", http_port=8000).http_url == "http://127.0.0.1:8000"


def test_a_missing_repository_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LocalServerError, match="there is no model repository at"):
        LocalServer(tmp_path / "none").start()


@pytest.mark.parametrize("key", ["short", "with:colon-0123456789", "with=equals-0123456789", "x" * 129])
def test_a_key_that_would_break_the_flag_is_refused(key: str) -> None:
    with pytest.raises(LocalServerError, match=f"the shared-memory key has {len(key)} characters; allowed are 16"):
        LocalServer(".", shared_memory_key=key)


def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalServerError, match=r"pip install 'autoglm-triton\[serve\]'"):
        triton_install.find_triton()


def test_a_missing_libpython_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install.sysconfig, "get_config_var", lambda name: "/nowhere")
    monkeypatch.setattr(triton_install.sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(triton_install.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(LocalServerError, match=r"apt-get install libpython3\.\d+$"):
        triton_install.find_python_library()


def test_the_backend_directory_is_links_only(tmp_path: Path) -> None:
    backends = triton_install.find_triton().assemble_backends(tmp_path)
    names = {path.name for path in (backends / "python").iterdir()}
    assert {"libtriton_python.so", "triton_python_backend_stub", "triton_python_backend_utils.py"} <= names
    assert all(path.is_symlink() and path.exists() for path in (backends / "python").iterdir())
