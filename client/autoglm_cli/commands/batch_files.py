"""The files of `autoglm batch`: jobs in, one JSON line for each answer out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from autoglm_client.exceptions import AutoGLMError
from autoglm_client.option_fields import OptionChanges
from autoglm_client.options import OPTION_NAMES, GenerationOptions
from autoglm_client.transport.requests import generation_request
from autoglm_client.types import Message, Prompt

from autoglm_cli.errors import CommandError

_KEYS = OPTION_NAMES | {"id", "prompt", "messages", "text_input"}
_PROMPT_KEYS = ("prompt", "messages", "text_input")


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    prompt: Prompt
    options: GenerationOptions


def read_jobs(path: Path, defaults: GenerationOptions) -> list[Job]:
    """Every line is checked before the first is asked. `prompt` is a user's message, `text_input` is continued as it
    is, `messages` is a conversation.
    """
    jobs: list[Job] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        job = _job(line, number, f"{path}, line {number}", defaults)
        if job.id in seen:
            raise CommandError(f"{path}, line {number}: the id {job.id!r} is that of line {seen[job.id]} already")
        seen[job.id] = number
        jobs.append(job)
    return jobs


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text may hold other line separators
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 at byte {error.start}") from None


def _job(line: str, number: int, where: str, defaults: GenerationOptions) -> Job:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise CommandError(f"{where}: not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise CommandError(f"{where}: a JSON object is needed, got {line[:60]!r}")
    if unknown := sorted(entry.keys() - _KEYS):
        raise CommandError(f"{where}: unknown key {unknown[0]!r}; known ones are {', '.join(sorted(_KEYS))}")
    try:
        changes = cast(OptionChanges, {key: entry[key] for key in OPTION_NAMES & entry.keys()})
        options = defaults.with_changes(changes)
        prompt = _prompt(entry, where)
        generation_request(prompt, options, stream=False, request_id="")
    except AutoGLMError as error:
        raise CommandError(f"{where}: {error}") from None
    return Job(str(entry.get("id", number)), prompt, options)


def _prompt(entry: Mapping[str, Any], where: str) -> Prompt:
    given = [key for key in _PROMPT_KEYS if key in entry]
    if len(given) != 1:
        raise CommandError(f"{where}: exactly one of {', '.join(_PROMPT_KEYS)} is needed, got {len(given)}")
    value = entry[given[0]]
    if given[0] == "messages":
        return _conversation(value, where)
    if not isinstance(value, str):
        raise CommandError(f"{where}: {given[0]} must be a string, got {value!r:.60}")
    return [Message("user", value)] if given[0] == "prompt" else value


def _conversation(value: Any, where: str) -> Prompt:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise CommandError(f"{where}: messages must be a list of objects with role and content, got {value!r:.60}")
    return value


class Journal:
    """The answers' file. A line that a killed run left half-written is dropped; each whole line is on disk at once."""

    def __init__(self, stream: BinaryIO, done: set[str]) -> None:
        self._stream = stream
        self.done = done

    @classmethod
    def open(cls, path: Path) -> Journal:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        done = {entry["id"] for line in whole.splitlines() if "error" not in (entry := _entry(line, path))}
        stream = path.open("ab")
        stream.truncate(len(whole))
        return cls(stream, done)

    def write(self, job_id: str, answer: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps({"id": job_id, **answer}, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._stream.fileno())
        self._stream.close()


def _entry(line: bytes, path: Path) -> dict[str, Any]:
    """One earlier answer. The file is left alone when it is something else."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise CommandError(
            f"{path} is not a file of answers: its line {line[:60].decode(errors='replace')!r} has no id"
        )
    return entry
