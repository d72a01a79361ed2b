"""The container's command: checks that this image can run the artifact, then becomes tritonserver.

What it checks, the engine checks again when it loads; here the answer is one line, before anything is started.
Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

RUNTIMES = ("tensorrt", "tensorrt-rtx")  # each is also the name of its Python package
HTTP_ADDRESS = "127.0.0.1"
EXIT_SECONDS = 20  # what requests under way are given after SIGTERM; less than compose.yaml's stop_grace_period
CONTROL_APIS = "model-repository,trace,logging,shared-memory"
# Bodies decide how much stack tritonserver's HTTP ports use: 8 MiB end some versions. "unlimited" would mean 2 MiB a thread.
STACK_BYTES = 1 << 30
MIB = 1 << 20
BOARD_BYTES = MIB  # more than it takes where max_queue is below 60,000; the engine knows it exactly, and looks again
NO_GROWTH = (
    1 << 63
) - 1  # a pool's step of growth that no file can take: it has its size from the start, or a body is refused
SHARED_MEMORY = Path("/dev/shm")
PYTHON_MODEL = re.compile(r"""^\s*backend\s*:\s*["']python["']""", re.MULTILINE)
_KEY = re.compile(r"[A-Za-z0-9_-]{16,128}")


class Refusal(Exception):
    """One sentence for the user."""


def check_artifact(artifact: Path) -> None:
    """Raises Refusal unless the plan in `artifact` was built by the very TensorRT that is installed here."""
    path = artifact / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        runtime, built_with = str(manifest["runtime"]), str(manifest["runtime_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path} cannot be read: {error!r}; mount the folder that `autoglm export` wrote") from None
    if runtime not in RUNTIMES:
        raise Refusal(f"the artifact's runtime is {runtime!r}; this image serves {' and '.join(RUNTIMES)}")
    installed = _installed(runtime)
    if installed != built_with:
        raise Refusal(
            f"the artifact's plan was built by {runtime} {built_with}, this image has {installed or 'none'}; "
            f"build the image with TENSORRT_PACKAGE={runtime} TENSORRT_VERSION={built_with}, or export again"
        )


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def pool_bytes(artifact: Path) -> int:
    """Of the shared memory that each model passes its tensors through; as the engine computes it
    (`autoglm_engine.shared_pools`)."""
    max_length = int(json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["max_length"])
    return max(8 * MIB, -(-(4 * MIB + 64 * max_length) // MIB) * MIB)


def check_shared_memory(repository: Path, pool: int, folder: Path = SHARED_MEMORY) -> None:
    """Raises Refusal where less is free than the models' pools take, beside some for the engine's board."""
    models = [path for path in repository.glob("*/config.pbtxt") if PYTHON_MODEL.search(path.read_text("utf-8"))]
    needed, found = len(models) * pool + BOARD_BYTES, os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed:  # no blocks at all say that there is no limit
        raise Refusal(
            f"the server needs {needed / MIB:.1f} MiB of shared memory, and {free / MIB:.1f} MiB are free in {folder}; "
            f"give it more: shm_size in compose.yaml, `--shm-size` of Docker, in Kubernetes an emptyDir of medium Memory"
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
    """As far as the container may, and not where stacks count that are not used: where the system promises no memory that it
    does not have, or limits the address space."""
    limited = any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )
    if limited or promises.read_text().strip() == "2":
        return
    most = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_BYTES if most == resource.RLIM_INFINITY else min(STACK_BYTES, most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, most))


def command(repository: Path, key: str, http_address: str = HTTP_ADDRESS, pool: int = 8 * MIB) -> list[str]:
    """All addresses are the container's own; compose.yaml says where on the host they are reached. HTTP is for the health
    check in the container alone, unless somebody chose otherwise: it looks neither at Host nor at Origin."""
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
    try:
        artifact = Path(environment["AUTOGLM_ARTIFACT"])
        check_artifact(artifact)
        key = control_key(environment)
        repository = Path(environment.get("AUTOGLM_MODEL_REPOSITORY", "/model_repository"))
        pool = pool_bytes(artifact)
        check_shared_memory(repository, pool)
    except (Refusal, KeyError) as refusal:
        sys.exit(f"Error: {refusal}" if isinstance(refusal, Refusal) else "Error: AUTOGLM_ARTIFACT is not set")
    environment.pop("AUTOGLM_CONTROL_KEY", None)  # the models have no use for it
    arguments = command(repository, key, environment.get("AUTOGLM_HTTP_ADDRESS", "") or HTTP_ADDRESS, pool)
    raise_stack_limit()
    os.execvpe(arguments[0], arguments, environment)


if __name__ == "__main__":
    main()
