"""`autoglm generate`"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from autoglm_client.client import Client
from autoglm_client.images.image import Image
from autoglm_client.options import GenerationOptions
from autoglm_client.types import Message, Prompt, Result

from autoglm_cli.configuring import command_settings
from autoglm_cli.errors import CommandError
from autoglm_cli.options import shared
from autoglm_cli.options.answer import AnswerOptions, Images, MaxPixels, System
from autoglm_cli.options.connection import ConnectionOptions
from autoglm_cli.options.groups import grouped
from autoglm_cli.output import notes, print_json, result_json, stage_table, summary_line, write_answer, write_pieces


@grouped
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is: no chat template.")] = False,
    system: System = None,
    images: Images = None,
    max_pixels: MaxPixels = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show the speed and where the time went, on stderr.")] = False,
    json: shared.Json = False,
    *,
    options: AnswerOptions,
    server: ConnectionOptions,
) -> None:
    """Ask one question; the answer streams to stdout.

    \b
    Examples:
      autoglm generate "What is the capital of France?"
      autoglm generate --raw "Once upon a time" -n 100 -t 0.8 --seed 7
      autoglm generate --image screen.png "What is on it?"
      git diff | autoglm generate - --system "Summarise this change." --stats
      autoglm generate "Name a colour and a fruit." --guided-regex "\\[a-z]+ \\[a-z]+"
      autoglm generate "Name a colour." --json | jq -r .text
      autoglm generate --model phone "Open the settings"
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    asked = prompt_of(text, raw=raw, system=system, images=images or (), max_pixels=max_pixels)
    with server.connection().client(options.timeouts()) as client:
        result = answer(client, asked, options.options(), show=not json)
    if json:
        print_json(result_json(result))
    if stats:
        notes().print(summary_line(result))
        notes().print(stage_table(result))


def answer(client: Client, asked: Prompt, options: GenerationOptions, *, show: bool) -> Result:
    """The whole answer; with `show` it is written to stdout, while it is made unless `use_streaming` is off."""
    if not command_settings().use_streaming:
        result = client.generate(asked, options)
        if show:
            write_answer(f"{result.text}\n")
        return result
    with client.stream(asked, options) as stream:
        if show:
            write_pieces(stream)
        return stream.result if show else stream.read_all()


def prompt_of(
    text: str, *, raw: bool, system: str | None, images: Sequence[Path] = (), max_pixels: int | None = None
) -> Prompt:
    """`images` come before the text; `max_pixels`: of each."""
    if max_pixels is not None and not images:
        raise CommandError("--max-pixels is about images, and there is no --image")
    for option, is_given in (("--system", system is not None), ("--image", bool(images))):
        if raw and is_given:
            raise CommandError(f"{option} goes with the chat template, which --raw leaves out; give one of them")
    if raw:
        return text
    asked = Message("user", [*(Image(path, max_pixels=max_pixels) for path in images), text] if images else text)
    return [*([Message("system", system)] if system is not None else []), asked]
