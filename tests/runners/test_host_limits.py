"""What the machine or its container does not give, memory or threads, is told in a sentence at load; nothing is
aborted."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import FileRecord, Manifest
from autoglm_engine.runners.host_memory import Room, check_memory, memory_room
from autoglm_engine.runners.native.runner import NativeRunner, pool_bytes
from autoglm_engine.runners.onnx.runner import OnnxRunner
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.system.thread_limits import ENGINE_THREADS, check_threads

from tests.runners.test_native import BASE, manifest_of
from tests.support.export.native_artifacts import write_native_artifact
from tests.support.export.tiny_decoders import SPECS

GB = 10**9
MEMINFO = "MemTotal:       24684092 kB\nMemAvailable:   16000000 kB\nSwapFree:  1000000 kB\nHugePages_Free: 0\n"
MACHINE = Room(17_000_000 * 1024, "on this machine")


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_2(limit: object, used: int, *, cached: int = 0, high: object = "max") -> dict[str, str]:
    stat = f"anon 5\nactive_file {cached - cached // 3}\ninactive_file {cached // 3}\n"
    return {"memory.max": f"{limit}\n", "memory.high": f"{high}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def version_1(limit: int, used: int, cached: int) -> dict[str, str]:
    stat = f"total_rss 5\ntotal_active_file {cached}\ntotal_inactive_file 0\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


def below(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"sys/fs/cgroup/{folder}/{name}": text for name, text in files.items()}


V2, V1 = {"proc/self/cgroup": "0::/outer/inner\n"}, {"proc/self/cgroup": "5:cpu:/\n4:memory:/box\n0::/\n"}
SYSTEMS: dict[str, tuple[dict[str, str], int]] = {
    "no group": ({}, MACHINE.num_bytes),
    "no limit": ({**V2, **below("outer/inner", version_2("max", 5))}, MACHINE.num_bytes),
    "a limit": ({**V2, **below("outer/inner", version_2(8 * GB, 3 * GB))}, 5 * GB),
    "its cache can go": ({**V2, **below("outer/inner", version_2(8 * GB, 7 * GB, cached=3 * GB))}, 4 * GB),
    "a soft limit": ({**V2, **below("outer/inner", version_2("max", GB, high=3 * GB))}, 2 * GB),
    "its parent's": (
        {**V2, **below("outer/inner", version_2(9 * GB, 0)), **below("outer", version_2(4 * GB, GB))},
        3 * GB,
    ),
    "in a container": ({"proc/self/cgroup": "0::/\n", **below(".", version_2(2 * GB, GB))}, GB),
    "the host's path in a container": ({**V2, **below(".", version_2(2 * GB, GB))}, GB),
    "more than the machine has": ({**V2, **below("outer/inner", version_2(80 * GB, 0))}, MACHINE.num_bytes),
    "more used than allowed": ({**V2, **below("outer/inner", version_2(2 * GB, 3 * GB))}, 0),
    "version 1": ({**V1, **below("memory/box", version_1(6 * GB, 5 * GB, GB))}, 2 * GB),
    "version 1 in a container": ({**V1, **below("memory", version_1(6 * GB, 5 * GB, 0))}, GB),
    "version 1 without a limit": ({**V1, **below("memory/box", version_1(2**63 - 4096, 5, 0))}, MACHINE.num_bytes),
    "damaged": ({**V2, **below("outer/inner", {"memory.max": "lots", "memory.current": ""})}, MACHINE.num_bytes),
}


@pytest.mark.parametrize("case", SYSTEMS)
def test_the_tightest_limit_counts(case: str, tmp_path: Path) -> None:
    files, expected = SYSTEMS[case]
    room = memory_room(system(tmp_path, files))
    assert room is not None and room.num_bytes == expected
    assert ("cgroup" in room.where) == (expected != MACHINE.num_bytes)


def test_a_system_that_does_not_say_refuses_nothing(tmp_path: Path) -> None:
    assert memory_room(tmp_path) is None


def test_this_system_says_how_much_there_is() -> None:
    room = memory_room()
    assert room is not None and 0 < room.num_bytes < 1 << 60


def big(**changes: Any) -> Manifest:
    """74.1 GB of keys and values."""
    manifest = dataclasses.replace(manifest_of(BASE), num_slots=46, max_length=1 << 24, prefill_chunk=16, **changes)
    return dataclasses.replace(manifest, cache=dataclasses.replace(manifest.cache, num_kv_heads=1, num_layers=1))


def test_the_sentence_says_what_is_needed_and_what_fits() -> None:
    manifest = big(files={"weights.bin": FileRecord(4 * GB, "0" * 64)})
    assert pool_bytes(manifest) == 46 * 2**24 * (16 + 32) * 2
    with pytest.raises(ArtifactError) as caught:
        check_memory(manifest, pool_bytes(manifest), room=Room(25 * GB, "on this machine"))
    assert str(caught.value) == (
        "there is not enough memory for 46 slots of 16777216 tokens: their keys and values take 74.1 GB, "
        "beside 4 GB of weights and 1.07 GB of buffers, and 25 GB are free on this machine; set "
        "max_batch_size to at most 12, or export it with fewer or shorter slots"
    )
    check_memory(manifest, pool_bytes(manifest), room=Room(80 * GB, "on this machine"))
    with pytest.raises(ArtifactError, match=r"5 GB are free in it; export it with fewer or shorter slots$"):
        check_memory(manifest, pool_bytes(manifest), room=Room(5 * GB, "in it"))


@pytest.mark.parametrize("runner", [NativeRunner, OnnxRunner])
def test_a_pool_that_no_memory_holds_is_refused_before_anything_is_read(runner: Any, tmp_path: Path) -> None:
    """The folder is empty."""
    manifest = dataclasses.replace(big(), num_slots=1024, runtime="onnx" if runner is OnnxRunner else "native")
    manifest = dataclasses.replace(manifest, cache=dataclasses.replace(manifest.cache, num_layers=9, dtype="float32"))
    with pytest.raises(ArtifactError, match=r"there is not enough memory for 1024 slots of 16777216 tokens: .* GB are"):
        runner(tmp_path, manifest, num_threads=1)


@pytest.mark.parity
def test_slots_that_are_not_used_take_no_memory(tmp_path: Path) -> None:
    manifest = write_native_artifact(tmp_path, dataclasses.replace(SPECS["llama"], vocab_size=300))
    huge = dataclasses.replace(manifest, num_slots=1024, max_length=1 << 20, prefill_chunk=16)
    with pytest.raises(ArtifactError, match="not enough memory for 1024 slots of 1048576 tokens"):
        load_runner(tmp_path, huge, num_threads=1)
    runner = load_runner(tmp_path, huge, num_threads=1, num_slots=2)
    assert runner.limits.num_slots == 2
    runner.close()


def test_threads_that_the_system_gives_are_no_matter() -> None:
    check_threads(8)


# Every thread's stack takes 8 MB of addresses: a limit on those refuses threads as limits on processes do, to every
# user.
SHORT_OF_THREADS = """
import resource, sys
from pathlib import Path
from autoglm_engine.errors import ArtifactError
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.native.runner import NativeRunner
from autoglm_engine.system.thread_limits import check_threads
from autoglm_export.reproducible.compiled import CompiledKernels
import numpy as np

folder = Path(sys.argv[1])
manifest = Manifest.load(folder)
values = np.linspace(-3, 3, 1 << 23, dtype=np.float32)
expected = CompiledKernels(num_threads=1).exp(values)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), -1))
makers = (
    lambda: load_runner(folder, manifest, num_threads=900),
    lambda: NativeRunner(folder, manifest, num_threads=900),
)
for make in makers:
    try:
        make()
    except ArtifactError as error:
        print(error)
assert np.array_equal(CompiledKernels(num_threads=900).exp(values), expected)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
load_runner(folder, manifest, num_threads=2).close()
print("and lives")
"""


@pytest.mark.parity
def test_too_few_threads_are_told_in_a_sentence(tmp_path: Path) -> None:
    write_native_artifact(tmp_path, dataclasses.replace(SPECS["llama"], vocab_size=300))
    command = [sys.executable, "-c", SHORT_OF_THREADS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-800:]
    counted, refused, last = done.stdout.splitlines()
    needed = 899 + ENGINE_THREADS
    assert counted.startswith("the system lets this process start ")
    assert f" of the {needed} threads that num_threads 900 needs, {ENGINE_THREADS} of them the engine's" in counted
    assert int(counted.split()[6]) < needed
    assert refused == "the system refuses one of the 900 threads of num_threads"
    assert last == "and lives"
