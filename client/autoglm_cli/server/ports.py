"""Whether ports can be listened on, asked before anything is started, who holds one that cannot, and which are free."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from autoglm_client.exceptions import LocalServerError

from autoglm_cli.procfs import ProcFs

_CONNECT_SECONDS = 2.0


Address = tuple[str, int]  # a port of 0, a free one, can always be had


def check_ports(addresses: Mapping[str, Address]) -> None:
    """`addresses`: by the names of the ports' settings. Raises LocalServerError for the first that cannot be had."""
    with ExitStack() as stack:
        had: dict[int, str] = {}
        for setting, (host, port) in addresses.items():
            try:
                stack.enter_context(_listening(host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port in had:
                    raise LocalServerError(f"{had[port]} and {setting} are both {port}; they must differ") from None
                raise LocalServerError(cannot_listen(host, port, error, setting)) from None
            had[port] = setting


def free_ports(host: str, count: int) -> list[int]:
    """`count` different ones. For a minute the kernel gives them to nobody who asks for any: a connection of each has
    just ended there. A server that names one gets it, since servers set SO_REUSEADDR. Raises OSError."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(_listening(host, 0)) for _ in range(count)]
        for listener in listeners:
            _end_a_connection(listener)
        return [int(listener.getsockname()[1]) for listener in listeners]


def chosen_ports(host: str, *ports: int) -> list[int]:
    """Free ports in place of the zeros. Raises LocalServerError."""
    try:
        free = iter(free_ports(host, ports.count(0)))
    except OSError as error:
        raise LocalServerError(f"cannot listen on {host}: {error.strerror or error}") from None
    return [port or next(free) for port in ports]


def _end_a_connection(listener: socket.socket) -> None:
    """Of its own, by its own side, which is the one that the kernel remembers."""
    with socket.create_connection(listener.getsockname()[:2]) as near:
        far, _ = listener.accept()
        far.close()
        near.recv(1)  # its end


def is_listening(address: Address) -> bool:
    """Whether somebody takes connections there."""
    try:
        socket.create_connection(address, _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def cannot_listen(host: str, port: int, error: OSError, setting: str) -> str:
    """Why, in one sentence."""
    place = f"cannot listen on {host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{place}: {_holder(port)} listens there already; stop it, or choose another port with {setting}"
    return f"{place}: {error.strerror or error}"


def _listening(host: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
    except OSError:
        probe.close()
        raise
    return probe


def _holder(port: int) -> str:
    proc = ProcFs()
    if (pid := proc.listener(port)) is None:
        return "a program of another user or container"
    return f"{proc.program_name(pid) or 'a program'} (process {pid})"
