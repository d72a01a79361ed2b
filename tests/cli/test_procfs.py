"""Figures of /proc and /sys, from folders like them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from autoglm_cli.procfs import ProcFs
from autoglm_cli.profile.gpu import parse_query
from autoglm_cli.profile.host import find_host, read_host, server_processes

ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
ib0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
down0\t00020A0A\t00000000\t0000\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
SOCKETS = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 76257 1 0
   1: 0100007F:1F42 0100007F:1F41 01 00000000:00000000 00:00000000 00000000     0        0 76299 1 0
"""
MEMORY = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n"


def make(root: Path, files: dict[str, str]) -> ProcFs:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return ProcFs(root, ticks_per_second=100)


def stat(name: str, user: int, system: int, parent: int = 1) -> str:
    return f"7 ({name}) S {parent} 7 7 0 -1 4194304 99 0 0 0 {user} {system} 3 4 20 0 1 0 559515 3133440 413\n"


def test_cpu_of_a_process_whose_name_has_parentheses(tmp_path: Path) -> None:
    proc = make(tmp_path, {"proc/7/stat": stat("a) b (c", 250, 50)})
    assert proc.cpu_seconds(7) == 3.0
    assert proc.cpu_seconds(8) is None


def test_the_machine_is_busy_but_for_idle_and_disk(tmp_path: Path) -> None:
    proc = make(tmp_path, {"proc/stat": "cpu  100 10 50 900 40 5 5 30 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"})
    assert proc.machine_cpu_seconds() == 2.0
    elsewhere = ProcFs(tmp_path / "nowhere", ticks_per_second=100)  # a system without /proc
    assert elsewhere.machine_cpu_seconds() is None and elsewhere.listener(8001) is None


def test_memory_of_the_machine_and_of_a_container(tmp_path: Path) -> None:
    proc = make(
        tmp_path,
        {
            "proc/meminfo": MEMORY,
            "proc/7/status": "Name:\tx\nVmRSS:\t     12 kB\n",
            "proc/7/cgroup": "0::/\n",
            "proc/8/cgroup": "0::/box/inner\n",
            "sys/fs/cgroup/box/memory.max": "512000\n",
            "sys/fs/cgroup/box/inner/memory.max": "max\n",
            "sys/fs/cgroup/box/memory.current": "300000\n",
            "sys/fs/cgroup/box/memory.stat": "anon 1\ninactive_file 100000\n",
            "proc/9/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert proc.resident_bytes(7) == 12 * 1024
    assert (proc.memory_used(7), proc.memory_limit(7)) == (600 * 1024, 1000 * 1024)
    assert (proc.memory_used(8), proc.memory_limit(8)) == (200_000, 512_000)
    assert (proc.memory_used(9), proc.memory_limit(9)) == (600 * 1024, 1000 * 1024)


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/box", {"sys/fs/cgroup/box/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/box", {"sys/fs/cgroup/box/cpu.max": "max 100000\n"}, None),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "200000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 0.5),
        (
            "1:cpu,cpuacct:/",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        (
            "1:cpu:/",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_the_cores_of_a_container(tmp_path: Path, cgroup: str, files: dict[str, str], cores: float | None) -> None:
    assert make(tmp_path, {"proc/7/cgroup": cgroup + "\n", **files}).cpu_quota(7) == cores


def test_interfaces_their_traffic_speed_and_routes(tmp_path: Path) -> None:
    table = "Inter-| Receive\n face |bytes\n    lo: 5 1 0 0 0 0 0 0 5 1\n  eth0: 100 1 0 0 0 0 0 0 70 1 0 0 0 0 0 0\n"
    files = {"proc/net/dev": table, "proc/net/route": ROUTES, "sys/class/net/eth0/speed": "1000\n"}
    proc = make(tmp_path, {**files, "sys/class/net/ib0/speed": "-1\n"})
    assert proc.interface_bytes("eth0") == (100, 70) and proc.interface_bytes("eth1") is None
    assert proc.interface_speed("eth0") == 125e6
    assert proc.interface_speed("ib0") is None and proc.interface_speed("eth1") is None
    assert proc.route_interface("10.1.2.3") == "ib0"
    assert proc.route_interface("8.8.8.8") == "eth0"
    assert proc.route_interface("10.10.2.1") == "ib0"  # down0's route is not up


def server(tmp_path: Path) -> ProcFs:
    proc = make(
        tmp_path,
        {
            "proc/net/tcp": SOCKETS,
            "proc/meminfo": MEMORY,
            "proc/70/cgroup": "0::/\n",
            "proc/70/stat": stat("tritonserver", 100, 0),
            "proc/71/cmdline": "stub\0/models/engine/1/model.py\0more\0",
            "proc/71/stat": stat("stub", 400, 100, parent=70),
            "proc/72/cmdline": "stub\0/models/engine/1/model.py\0",
            "proc/72/stat": stat("stub) x (", 1, 1, parent=70),
            "proc/73/cmdline": "sh\0",
            "proc/73/stat": stat("sh", 1, 1, parent=72),
        },
    )
    (tmp_path / "proc/70/fd").mkdir()
    (tmp_path / "proc/70/fd/9").symlink_to("socket:[76257]")
    return proc


def test_the_server_is_found_by_its_port_and_its_models_by_their_files(tmp_path: Path) -> None:
    proc = server(tmp_path)
    assert proc.listener(8001) == 70 and proc.listener(8002) is None  # 8002 is the other end of a connection
    assert server_processes(proc, 70) == {"tritonserver": 70, "engine": 71, "engine 2": 72}


def test_a_host_is_what_the_server_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    proc = server(tmp_path)
    host = find_host(proc, "127.0.0.1:8001")
    assert (host.cores, host.memory_bytes) == (3.0, 1000 * 1024)
    assert host.interface is not None and host.interface.is_loopback
    state = read_host(proc, host)
    assert state.cpu_seconds["tritonserver"] == 1.0 and state.cpu_seconds["engine"] == 5.0
    assert state.memory_used == 600 * 1024


def test_of_a_server_elsewhere_only_this_client_is_seen(tmp_path: Path) -> None:
    proc = make(tmp_path, {"proc/net/route": ROUTES, "sys/class/net/eth0/speed": "1000\n"})
    host = find_host(proc, "192.0.2.9:8001")
    assert (list(host.processes), host.cores) == (["client"], None)
    assert host.interface is not None and (host.interface.name, host.interface.bytes_per_second) == ("eth0", 125e6)


def test_the_busiest_gpu_counts() -> None:
    assert parse_query("12, Card A\n80, Card B\n[N/A], Card C\n") == (0.8, "Card B")
    assert parse_query("No devices were found\n") is None


# Its child is there all the time, while its threads come and go.
RESTLESS = """
import subprocess, threading, time
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
while True:
    threads = [threading.Thread(target=time.sleep, args=(0.001,)) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_children_are_seen_while_threads_come_and_go() -> None:
    parent = psutil.Popen([sys.executable, "-c", RESTLESS], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    try:
        assert [ProcFs().children(parent.pid) for _ in range(200)] == [[child.pid]] * 200
    finally:
        parent.kill()
        child.kill()
        parent.communicate()
