"""Finds the server's processes and what they may use, and takes their figures."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from autoglm_client.model_names import ENSEMBLE, PARTS, ModelNames

from autoglm_cli.procfs import ProcFs

from .records import Host, HostState, Interface

CLIENT = "client"
SERVER = "tritonserver"
_DEFAULT = ModelNames.of(ENSEMBLE)
Figure = TypeVar("Figure", int, float)


def find_host(proc: ProcFs, url: str, *, server_pid: int | None = None, names: ModelNames = _DEFAULT) -> Host:
    """`url` is `host:port`. `names`: of the models that are asked. `server_pid` is known where this program started the
    server; else who listens is looked up."""
    name, _, port = url.rpartition(":")
    address = _address(name.strip("[]"))
    interface = _interface(proc, address)
    if interface is None or not interface.is_loopback:
        return Host(processes={CLIENT: os.getpid()}, interface=interface)
    pid = server_pid or (proc.listener(int(port)) if port.isdigit() else None)
    if pid is None:
        return Host(processes={CLIENT: os.getpid()}, interface=interface)
    return Host(
        processes={**server_processes(proc, pid, names), CLIENT: os.getpid()},
        cores=_cores(proc, pid),
        memory_bytes=proc.memory_limit(pid),
        interface=interface,
    )


def server_processes(proc: ProcFs, pid: int, names: ModelNames = _DEFAULT) -> dict[str, int]:
    """tritonserver and the processes of its Python models: those of `names` by what they do, others by their names."""
    parts = {getattr(names, part): part for part in PARTS}
    found = {SERVER: pid}
    waiting = proc.children(pid)
    while waiting:
        child = waiting.pop(0)
        if name := _model_name(proc.command_line(child)):
            found[_free_name(parts.get(name, name), found)] = child
        waiting += proc.children(child)
    return found


def read_host(proc: ProcFs, host: Host) -> HostState:
    pid = next(iter(host.processes.values()))
    traffic = proc.interface_bytes(host.interface.name) if host.interface else None
    return HostState(
        cpu_seconds=_known({name: proc.cpu_seconds(of) for name, of in host.processes.items()}),
        resident_bytes=_known({name: proc.resident_bytes(of) for name, of in host.processes.items()}),
        machine_cpu_seconds=proc.machine_cpu_seconds() if host.cores == os.cpu_count() else None,
        memory_used=proc.memory_used(pid) if host.memory_bytes else None,
        received_bytes=traffic[0] if traffic else None,
        sent_bytes=traffic[1] if traffic else None,
    )


def _known(figures: Mapping[str, Figure | None]) -> dict[str, Figure]:
    return {name: figure for name, figure in figures.items() if figure is not None}


def _model_name(command: list[str]) -> str:
    file = next((Path(argument) for argument in command if argument.endswith("/model.py")), None)
    return file.parent.parent.name if file else ""


def _free_name(name: str, taken: Mapping[str, int]) -> str:
    count = sum(other.split(" ")[0] == name for other in taken)
    return f"{name} {count + 1}" if count else name


def _cores(proc: ProcFs, pid: int) -> float | None:
    try:
        allowed = float(len(os.sched_getaffinity(pid)))
    except OSError:
        return None
    quota = proc.cpu_quota(pid)
    return min(allowed, quota) if quota else allowed


def _address(name: str) -> str | None:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _interface(proc: ProcFs, address: str | None) -> Interface | None:
    if address is None:
        return None
    if ipaddress.ip_address(address).is_loopback:
        return Interface("lo", is_loopback=True)
    name = proc.route_interface(address) if "." in address else None
    return Interface(name, is_loopback=False, bytes_per_second=proc.interface_speed(name)) if name else None
