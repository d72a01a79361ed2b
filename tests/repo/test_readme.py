"""The commands of the README do what it says. A command that is new there fails here until it is run or excused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorrt_rtx as trt
from autoglm_cli.server.local_server import LocalServer
from autoglm_engine.manifest import Manifest
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.gateway.gateway_server import GatewayThread

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

EXCUSED = {
    "make test": "this very run",
    "make gateway": "fixed ports; test_gateway_process.py runs `autoglm serve --gateway`",
    "make serve": "fixed ports; test_client_server.py runs `autoglm serve`",
    ". .venv/bin/activate": "the tests run inside it",
    "autoglm export ./glm-4-9b-chat --max-length 4096": "needs a checkpoint of 19 GB; test_parity.py exports tiny ones",
    "autoglm export smollm2 --precision fp32 --check": "test_parity.py runs the same gate",
    "autoglm export ./AutoGLM-Phone-9B --runtime tensorrt --precision fp8": "needs a GPU; see tests/gpu",
}
EXPECTED_OUTPUT = {
    "make demo": "The capital of France is Paris",
    'autoglm generate "What is the capital of France?" --stats': "Paris",
    "autoglm health": "ready",
    "autoglm profile": "bottleneck",
    "autoglm inspect": "smollm2",
    "curl -s localhost:8000": "text_output",
    "curl -s localhost:8080": "chat.completion",
}

BUILD_FOR_GPU = "autoglm export smollm2 -o build/rtx --runtime tensorrt-rtx"


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#.*$", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line not in EXCUSED]


def run(command: str, server: LocalServer, artifact: Path) -> subprocess.CompletedProcess[str]:
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "AUTOGLM_URL": server.grpc_url,
        "AUTOGLM_ARTIFACT": str(artifact),
    }
    command = command.replace("localhost:8000", f"127.0.0.1:{server.http_port}")
    return subprocess.run(["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def gateway(server: LocalServer) -> Iterator[GatewayThread]:
    with GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as running:
        yield running


@pytest.mark.server
@pytest.mark.parametrize("command", [line for line in commands() if not line.startswith(BUILD_FOR_GPU)])
def test_a_command_of_the_readme_works(
    command: str, server: LocalServer, gateway: GatewayThread, artifact: Path
) -> None:
    expected = next(text for start, text in EXPECTED_OUTPUT.items() if command.startswith(start))
    done = run(command.replace("localhost:8080", f"127.0.0.1:{gateway.port}"), server, artifact)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert expected in output


@pytest.mark.server
@pytest.mark.tensorrt
@pytest.mark.timeout(3600)
def test_its_engine_for_a_gpu_is_smollm2_whole(server: LocalServer, artifact: Path) -> None:
    (command,) = [line for line in commands() if line.startswith(BUILD_FOR_GPU)]
    done = run(command, server, artifact)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "exported smollm2 (tensorrt-rtx, bf16)" in output
    manifest = Manifest.load(ROOT / "build" / "rtx")
    assert (manifest.runtime, manifest.runtime_version, manifest.precision) == ("tensorrt-rtx", trt.__version__, "bf16")
    assert manifest.cache.dtype == "bfloat16"
    assert manifest.prefill_chunk == 512
    assert len(manifest.runtime_details["tensors"]) == 12 + 4 * 30
    assert manifest.runtime_details["compute_capabilities"] == [command.rpartition(" ")[2]]


@pytest.mark.server
def test_the_openai_client_of_the_readme_works(gateway: GatewayThread, capsys: pytest.CaptureFixture[str]) -> None:
    _, block = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert "http://127.0.0.1:8080" in block
    exec(compile(block.replace("http://127.0.0.1:8080", gateway.url), "README.md", "exec"), {})
    written, num_tokens = capsys.readouterr().out.rsplit(" ", 1)
    answer = json.loads(written)
    assert answer.keys() == {"name"} and isinstance(answer["name"], str) and len(answer["name"]) <= 12
    assert int(num_tokens) > 0


@pytest.mark.server
def test_the_python_of_the_readme_works(server: LocalServer, capsys: pytest.CaptureFixture[str]) -> None:
    block, _ = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert "127.0.0.1:8001" in block
    exec(compile(block.replace("127.0.0.1:8001", server.grpc_url), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"\d+ ms\n.*\d+ ms$", printed, flags=re.DOTALL)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((docs/[^)#]+)", README))))
def test_what_the_readme_links_to_is_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_body_that_the_docs_send_says_what_it_is() -> None:
    """curl says of a body that it is a form, unless it is told otherwise."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    sending = [line for page in pages for line in page.read_text().splitlines() if re.search(r"curl\b.* -d ", line)]
    assert sending and all("-H 'Content-Type: application/json'" in line for line in sending)
