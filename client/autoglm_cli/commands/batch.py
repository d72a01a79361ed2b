"""`autoglm batch`: many prompts from a file, resumable."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from autoglm_client.async_client import AsyncClient
from autoglm_client.exceptions import AutoGLMError, CannotConnectError
from autoglm_client.mapping import MapLimits, bounded_map
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autoglm_cli.configuring import command_settings
from autoglm_cli.errors import CommandError
from autoglm_cli.options import shared
from autoglm_cli.options.answer import AnswerOptions
from autoglm_cli.options.connection import ConnectionOptions
from autoglm_cli.options.groups import grouped
from autoglm_cli.output import notes, print_json, result_json

from .batch_files import Job, Journal, read_jobs


@grouped
def batch(
    file: Annotated[
        Path, typer.Argument(help='JSON lines: {"prompt": ...} or {"messages": [...]}, with options and an id.')
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of the answers. \\[default: FILE with .answers.jsonl]")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Requests in flight.")] = 16,
    json: shared.Json = False,
    *,
    options: AnswerOptions,
    server: ConnectionOptions,
) -> None:
    """Answer every line of a file. Run it again after an interruption: lines that have an answer are skipped.

    A line's own options (max_tokens, temperature, ...) override those of the command line.

    A line without an id gets its number. Answers are written as they complete; a failed line gets an "error".

    \b
    Examples:
      autoglm batch prompts.jsonl
      autoglm batch prompts.jsonl -o answers.jsonl -c 32 --max-tokens 200
      echo '{"id": "a", "prompt": "Say hi.", "max_tokens": 5}' > one.jsonl; autoglm batch one.jsonl --json
    """
    target = output if output is not None else file.with_suffix(".answers.jsonl")
    if target.resolve() == file.resolve():
        raise CommandError(f"the answers cannot go into the file of the prompts: {file}")
    jobs = read_jobs(file, options.options())
    limits = MapLimits(concurrency, prefetch_factor=command_settings().prefetch_factor, ordered=False)
    with Journal.open(target) as journal:
        waiting = [job for job in jobs if job.id not in journal.done]
        client = server.connection().async_client(options.timeouts())
        failed = asyncio.run(_answer(client, waiting, journal, limits)) if waiting else 0
    if json:
        counts = {"asked": len(waiting), "skipped": len(jobs) - len(waiting), "failed": failed}
        print_json({**counts, "output": str(target)})
    else:
        notes().print(f"{len(waiting) - failed} answered, {len(jobs) - len(waiting)} were done before: {target}")
    if failed:
        raise CommandError(
            f"{failed} of {len(waiting)} lines failed; {target} says why, and running again retries them"
        )


async def _answer(client: AsyncClient, jobs: list[Job], journal: Journal, limits: MapLimits) -> int:
    """The number of failed jobs. A server that cannot be reached ends the run."""
    failed = 0

    async def ask(job: Job) -> tuple[Job, dict[str, object] | AutoGLMError]:
        try:
            return job, result_json(await client.generate(job.prompt, job.options))
        except CannotConnectError:
            raise
        except AutoGLMError as error:
            return job, error

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    async with client:
        with Progress(*columns, console=notes()) as bar:
            task = bar.add_task("answering", total=len(jobs))
            async for outcome in bounded_map(ask, jobs, limits):
                if isinstance(outcome, Exception):
                    raise outcome
                job, answer = outcome
                failed += isinstance(answer, AutoGLMError)
                journal.write(job.id, {"error": str(answer)} if isinstance(answer, AutoGLMError) else answer)
                bar.advance(task)
    return failed
