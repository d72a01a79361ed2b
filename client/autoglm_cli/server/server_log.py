"""Reads tritonserver's log for the one line that a person needs."""

from __future__ import annotations

import re

_PREFIX = re.compile(r"^(?P<level>[IWEF])\d{4} [\d:.]+ \d+ [\w.]+:\d+\] ?")
_SPOKEN_LEVEL = re.compile(r"^error: ", re.IGNORECASE)
_RAISED = re.compile(r"(Failed to initialize Python stub|Failed to create instance): (\w+(\.\w+)*: )?(?P<message>.+)$")
_STACK = re.compile(r"(\\n)+(At:.*)?$")  # a log line has the stack on it, with escaped line ends
_FAILED = re.compile(r"failed to load '(?P<model>\w+)'[^:]*: (?P<message>.+)$")
_LOADING, _LOADED = re.compile(r'"loading: ([^:"]+):\d+"'), re.compile(r"successfully loaded '([^']+)'")
_NO_GPU = re.compile(r"CUDA|NVML|DCGM|pinned", re.IGNORECASE)  # said on every machine without a GPU


def last_line(log: str) -> str:
    """The last line without its time stamp; empty when there is none."""
    lines = [line for line in log.splitlines() if line.strip() and not _NO_GPU.search(line)]
    return _PREFIX.sub("", lines[-1]).strip('" ') if lines else ""


def startup_error(log: str) -> str:
    """Why the server did not start: what a model raised, else the first error, else the last line."""
    for line in log.splitlines():
        if raised := _RAISED.search(_STACK.sub("", line.strip('" '))):
            return raised["message"].strip('" ')
    errors = _errors(log)
    for line in errors:
        if failed := _FAILED.search(line):
            return f"the model {failed['model']} failed to load: {failed['message']}"
    return errors[0] if errors else last_line(log) or "it wrote no log"


def unready_reason(log: str) -> str:
    """Why a server that has not ended is not ready: the models that it still loads, else the last line."""
    loaded = set(_LOADED.findall(log))
    loading = [model for model in dict.fromkeys(_LOADING.findall(log)) if model not in loaded]
    return f"still loading {', '.join(loading)}" if loading else last_line(log)


def ending_error(log: str) -> str:
    """Why a running server ended: the last error but for those about the ending itself, else the last line."""
    errors = [line for line in _errors(log) if "stop server" not in line]
    return errors[-1] if errors else last_line(log) or "it wrote no log"


def _errors(log: str) -> list[str]:
    lines = [_STACK.sub("", line.strip('" ')) for line in log.splitlines()]
    return [_SPOKEN_LEVEL.sub("", _PREFIX.sub("", line).strip('" ')) for line in lines if _is_error(line)]


def _is_error(line: str) -> bool:
    mark = _PREFIX.match(line)
    is_error = mark["level"] in "EF" if mark else line.lower().startswith(("error", "failed"))
    return is_error and not _NO_GPU.search(line)
