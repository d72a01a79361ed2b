"""Kernels that TensorRT-RTX compiled, kept for the next start: it compiles some for each shape, on the machine itself.

They lie in the user's cache folder, `$XDG_CACHE_HOME/autoglm` or `~/.cache/autoglm`, and not beside the plan: a Triton
that polls its model repository would load the model again for each file written there, and a container mounts it
read-only. A file's name says what it is for: another plan, version or GPU has another file. What is damaged is compiled
again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp

from autoglm_engine.system.own_files import open_own

_log = logging.getLogger(__name__)
_DIGEST_BYTES = 32


class KernelCache:
    """One file. `key`: all that its content depends on."""

    def __init__(self, key: str, environ: Mapping[str, str] = os.environ) -> None:
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        self.path = _folder(environ) / f"{name}.kernels"
        self._digest = b""  # of what the file holds

    def read(self) -> bytes:
        """What was kept; nothing where nothing was, or where it is not whole, or not this user's own."""
        if (file := open_own(self.path)) is None:
            return b""
        with os.fdopen(file, "rb") as opened:
            digest, content = opened.read(_DIGEST_BYTES), opened.read()
        if hashlib.sha256(content).digest() != digest:
            _log.warning("%s is damaged: its kernels are compiled again", self.path)
            return b""
        self._digest = digest
        return content

    def write(self, content: bytes) -> None:
        """Keep it, unless it is there already. A folder that cannot be written to costs the next start its time."""
        if (digest := hashlib.sha256(content).digest()) == self._digest:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replace(digest + content)
        except OSError as error:
            _log.warning("compiled kernels are not kept for the next start: %s", error)
            return
        self._digest = digest

    def _replace(self, content: bytes) -> None:
        """Under a name of its own first: processes of two containers that share the folder may have the same id."""
        file, name = mkstemp(prefix=f"{self.path.stem}.", dir=self.path.parent)
        partial = Path(name)
        try:
            with os.fdopen(file, "wb") as opened:
                opened.write(content)
            partial.replace(self.path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise


def _folder(environ: Mapping[str, str]) -> Path:
    """Of a process without a home there is none that it may write to, which `write` tells."""
    home = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/")) / ".cache"
    return Path(home) / "autoglm"
