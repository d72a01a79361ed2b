"""The container's command: checks that this image can run the artifacts, then becomes tritonserver.

What it checks, the engine checks again when it loads; here the answer is one line, before anything is started.
Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import secrets
import ssl
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from engines import DEFAULT_ENGINE, engines, own_artifact

PLANS = (
    "tensorrt",
    "tensorrt-rtx",
)  # runtimes whose artifact loads in one version alone; each is the name of its package
PACKAGES = {"onnx": "onnxruntime", "native": ""}  # of the others: what must be installed
HTTP_ADDRESS = "127.0.0.1"
EXIT_SECONDS = 20  # what requests under way are given after SIGTERM; less than compose.yaml's stop_grace_period
CONTROL_APIS = "model-repository,trace,logging,shared-memory"
# Bodies decide how much stack tritonserver's HTTP ports use: 8 MiB end some versions. "unlimited" would mean 2 MiB a
# thread.
STACK_BYTES = 1 << 30
MIB = 1 << 20
SMALLEST_POOL = 8 * MIB
BOARD_BYTES = MIB  # more than boards take where max_queue is below 60,000; the engine knows it exactly, and looks again
NO_GROWTH = (1 << 63) - 1  # a step of growth that no file can take: a pool has its size from the start
SHARED_MEMORY = Path("/dev/shm")
PYTHON_MODEL = re.compile(r"""^\s*backend\s*:\s*["']python["']""", re.MULTILINE)
PING_MS = 10_000  # what clients may ping each, where Triton would end the connection of one that pings within 300 s
_KEY = re.compile(r"[A-Za-z0-9_-]{16,128}")


class Refusal(Exception):
    """One sentence for the user."""


def check_artifact(artifact: Path) -> None:
    """Raises Refusal unless this image has the artifact's runtime: of TensorRT the very version that built the plan."""
    path = artifact / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        runtime, built_with = str(manifest["runtime"]), str(manifest["runtime_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path} cannot be read: {error!r}; mount the folder that `autoglm export` wrote") from None
    if runtime in PACKAGES:
        _check_package(runtime, PACKAGES[runtime])
        return
    if runtime not in PLANS:
        raise Refusal(f"the artifact's runtime is {runtime!r}; images serve {', '.join((*PLANS, *PACKAGES))}")
    installed = _installed(runtime)
    if installed != built_with:
        raise Refusal(
            f"the artifact's plan was built by {runtime} {built_with}, this image has {installed or 'none'}; "
            f"build the image with TENSORRT_PACKAGE={runtime} TENSORRT_VERSION={built_with}, or export again"
        )


def _check_package(runtime: str, package: str) -> None:
    if package and _installed(package) is None:
        raise Refusal(f"the artifact's runtime is {runtime}, this image has no {package}; build it of Dockerfile.cpu")


def artifacts(repository: Path, environ: Mapping[str, str]) -> list[Path]:
    """Those that the engines of the repository will load. Raises Refusal where one of them is not named."""
    found = list[Path]()
    for engine in engines(repository) or [DEFAULT_ENGINE]:
        own = own_artifact(repository, engine) if (repository / engine).is_dir() else None
        if own is None and not environ.get("AUTOGLM_ARTIFACT"):
            raise Refusal("AUTOGLM_ARTIFACT is not set")
        found.append(own or Path(environ["AUTOGLM_ARTIFACT"]))
    return found


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def pool_bytes(artifact: Path) -> int:
    """Of the shared memory that each model passes its tensors through; as the engine computes it
    (`autoglm_engine.system.shared_pools`)."""
    path = artifact / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        wanted = 4 * MIB + 64 * int(manifest["max_length"]) + _image_bytes(manifest.get("vision"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path} does not say how long its slots are: {error!r}; export it again") from None
    return max(SMALLEST_POOL, -(-wanted // MIB) * MIB)


def _image_bytes(vision: dict[str, Any] | None) -> int:
    """Of the files of a request, and of the features of the largest image in float32."""
    if not vision:
        return 0
    pixels_a_token = int(vision["frames"]) * (int(vision["patch_size"]) * int(vision["merge_size"])) ** 2
    most = int(vision["max_pixels"]) / pixels_a_token
    # A strip of 1 by 200 that is made larger is rounded up along both sides: `VisionSettings.largest_tokens`.
    largest = math.floor((math.sqrt(most * 200) + 1) * (math.sqrt(most / 200) + 1))
    return 16 * MIB + largest * int(vision["hidden_size"]) * 4


def check_shared_memory(repository: Path, pool: int, folder: Path = SHARED_MEMORY) -> None:
    """Raises Refusal where less is free than the models' pools take, beside some for the engine's board."""
    models = [path for path in repository.glob("*/config.pbtxt") if PYTHON_MODEL.search(path.read_text("utf-8"))]
    needed, found = len(models) * pool + BOARD_BYTES, os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed:  # no blocks at all say that there is no limit
        raise Refusal(
            f"the server needs {needed / MIB:.1f} MiB of shared memory, and {free / MIB:.1f} MiB are free in {folder}; "
            "give it more: shm_size in compose.yaml, `--shm-size` of Docker, in Kubernetes an emptyDir of "
            "medium Memory"
        )


def control_key(environ: Mapping[str, str]) -> str:
    """AUTOGLM_CONTROL_KEY; where that is empty a random key, which opens the control APIs to nobody."""
    key = environ.get("AUTOGLM_CONTROL_KEY", "") or secrets.token_hex(16)
    if not _KEY.fullmatch(key):
        raise Refusal(
            f"AUTOGLM_CONTROL_KEY has {len(key)} characters or others than letters, digits, - and _; "
            "allowed are 16 ... 128 of those"
        )
    return key


def raise_stack_limit(promises: Path = Path("/proc/sys/vm/overcommit_memory")) -> None:
    """As far as the container may, and not where stacks count that are not used: where the system promises no memory
    that it does not have, or limits the address space."""
    limited = any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )
    if limited or promises.read_text().strip() == "2":
        return
    most = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_BYTES if most == resource.RLIM_INFINITY else min(STACK_BYTES, most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, most))


def tls_arguments(environ: Mapping[str, str]) -> list[str]:
    """TLS of the gRPC port where AUTOGLM_GRPC_TLS_CERT and _KEY name files; with AUTOGLM_GRPC_TLS_CLIENT_CA clients
    need certificates of its authorities, too."""
    cert, key, client_ca = (environ.get(f"AUTOGLM_GRPC_TLS_{name}", "") for name in ("CERT", "KEY", "CLIENT_CA"))
    if not (cert or key or client_ca):
        return []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")
        if client_ca:
            context.load_verify_locations(client_ca)
    except OSError as error:  # ssl.SSLError is one
        names = "AUTOGLM_GRPC_TLS_CERT, AUTOGLM_GRPC_TLS_KEY and AUTOGLM_GRPC_TLS_CLIENT_CA"
        raise Refusal(f"the files of {names} cannot be used: {error.strerror or error}") from None
    files = ["--grpc-use-ssl=true", f"--grpc-server-cert={cert}", f"--grpc-server-key={key}"]
    return [*files, *(["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={client_ca}"] if client_ca else [])]


def known_flags(program: str = "tritonserver") -> list[str]:
    """Clients' shared memory is off by default since 26.04; older versions, where it is always on, refuse the flag."""
    try:
        said = subprocess.run([program, "--help"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):  # its start will say what is wrong
        return []
    return ["--allow-client-shm=true"] if b"--allow-client-shm" in said.stdout + said.stderr else []


def command(repository: Path, key: str, http_address: str = HTTP_ADDRESS, pool: int = SMALLEST_POOL) -> list[str]:
    """All addresses are the container's own; compose.yaml says where on the host they are reached. HTTP is for the
    health check in the container alone, unless somebody chose otherwise: it looks neither at Host nor at Origin."""
    options = {
        "model-repository": repository,
        "model-control-mode": "none",
        "exit-timeout-secs": EXIT_SECONDS,
        "http-address": http_address,
        "http-port": 8000,
        "grpc-address": "0.0.0.0",
        "grpc-port": 8001,
        "metrics-address": "0.0.0.0",
        "metrics-port": 8002,
        "http-restricted-api": f"{CONTROL_APIS}:autoglm-control-key={key}",
        "grpc-http2-min-recv-ping-interval-without-data": PING_MS,
        "grpc-restricted-protocol": f"{CONTROL_APIS}:autoglm-control-key={key}",
    }
    pools = {"shm-default-byte-size": pool, "shm-growth-byte-size": NO_GROWTH}
    return [
        "tritonserver",
        *(f"--{name}={value}" for name, value in options.items()),
        *(f"--backend-config=python,{name}={value}" for name, value in pools.items()),
    ]


def main() -> None:
    environment = dict(os.environ)
    repository = Path(environment.get("AUTOGLM_MODEL_REPOSITORY", "/model_repository"))
    try:
        found = list(artifacts(repository, environment))
        for artifact in found:
            check_artifact(artifact)
        key = control_key(environment)
        tls = tls_arguments(environment)
        pool = max(map(pool_bytes, found), default=SMALLEST_POOL)
        check_shared_memory(repository, pool)
    except Refusal as refusal:
        sys.exit(f"Error: {refusal}")
    environment.pop("AUTOGLM_CONTROL_KEY", None)  # the models have no use for it
    arguments = command(repository, key, environment.get("AUTOGLM_HTTP_ADDRESS", "") or HTTP_ADDRESS, pool)
    arguments += [*tls, *known_flags()]
    raise_stack_limit()
    os.execvpe(arguments[0], arguments, environment)


if __name__ == "__main__":
    main()
