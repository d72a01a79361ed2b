"""Reads tritonserver's log for the one line that a person needs."""

from __future__ import annotations

import re

_PREFIX = re.compile(r"^(?P<level>[IWEF])\d{4} [\d:.]+ \d+ [\w.]+:\d+\] ?")
_RAISED = re.compile(r"(?:^|\s)(?:[\w.]+\.)?\w*(?:Error|Exception|Unavailable|InvalidRequest): (?P<message>.+)$")
_STACK = re.compile(r"(\\n)+(At:.*)?$|\s+At:.*$")  # a log line has the stack on it, with escaped line ends
_FAILED = re.compile(r"failed to load '(?P<model>\w+)'[^:]*: (?P<message>.+)$")


def last_line(log: str) -> str:
    """The last line without its time stamp; empty when there is none."""
    lines = [line for line in log.splitlines() if line.strip()]
    return _PREFIX.sub("", lines[-1]).strip('" ') if lines else ""


def startup_error(log: str) -> str:
    """Why the server failed: what a model raised, else the first error, else the last line."""
    errors = [_PREFIX.sub("", line) for line in log.splitlines() if line[:1] in "EF" and _PREFIX.match(line)]
    for line in log.splitlines():
        if raised := _RAISED.search(_PREFIX.sub("", line)):
            return _STACK.sub("", raised["message"].strip('" '))
    for line in errors:
        if failed := _FAILED.search(line):
            return f"the model {failed['model']} failed to load: {failed['message']}"
    return errors[0].strip('" ') if errors else last_line(log) or "it wrote no log"
