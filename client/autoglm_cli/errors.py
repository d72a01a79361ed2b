"""How a command fails: one sentence on stderr and a non-zero exit. 1: it failed; 2: it was called wrongly; 130:
Ctrl-C."""

from __future__ import annotations

import importlib
import os
import re
from types import ModuleType
from typing import Any

import typer
from autoglm_client.exceptions import AutoGLMError, CannotConnectError
from autoglm_client.printable import visible
from autoglm_client.transport.channel_failures import CLOSED_AT_ONCE

from .command_help import HelpfulGroup

# The class of every misuse of a command line: typer brings its own copy of click, which has no public name for it.
_USAGE_ERROR = typer.BadParameter.__bases__[0]
DEBUG_VARIABLE = "AUTOGLM_DEBUG"
_UNKNOWN_MODEL = re.compile(r"unknown model: ('[^']*') is not found")  # Triton's words
# What the newer versions of typer say of a value that does not fit, and what is said here.
_PLAIN_WORDS = {
    r"Input should be a valid integer\b.*": "it must be a whole number",
    r"Input should be a valid number\b.*": "it must be a number",
    r"Input should be greater than or equal to (\S+)": r"it must be at least \1",
    r"Input should be less than or equal to (\S+)": r"it must be at most \1",
}


class CommandError(Exception):
    """A sentence for the user."""


class FriendlyGroup(HelpfulGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(err=True)  # what was being printed ends here, the shell's prompt begins a line
            raise typer.Exit(130) from None
        except BrokenPipeError:  # nobody reads on; typer ends with 1 and in silence
            raise
        except Exception as error:
            if isinstance(error, typer.Exit | typer.Abort):
                raise
            if isinstance(error, _USAGE_ERROR):
                fail(usage_sentence(error))
                raise typer.Exit(2) from None
            if os.environ.get(DEBUG_VARIABLE):
                raise
            fail(sentence_of(error))
            raise typer.Exit(1) from None


def usage_error(sentence: str) -> Exception:
    """Of a command that was called wrongly: it is shown with where to read on."""
    error: Exception = _USAGE_ERROR(sentence)
    return error


def usage_sentence(error: Any) -> str:
    """What was wrong with the command line, and where to read on."""
    command = error.ctx.command_path if error.ctx else "autoglm"
    message = error.format_message().rstrip(".")
    for pattern, words in _PLAIN_WORDS.items():
        message = re.sub(pattern, words, message)
    return f"{message} See {command} --help" if message.endswith("?") else f"{message}; see {command} --help"


def fail(sentence: str) -> None:
    typer.echo(f"error: {visible(sentence)}", err=True)


def sentence_of(error: Exception) -> str:
    if isinstance(error, CannotConnectError):
        return with_advice(str(error))
    if isinstance(error, AutoGLMError) and (unknown := _UNKNOWN_MODEL.search(str(error))):
        return f"the server has no model {unknown[1]}; --model names one that it has"
    if isinstance(error, AutoGLMError | CommandError) or _is_of_our_packages(error):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())} (AUTOGLM_DEBUG=1 shows where)"


def with_advice(sentence: str) -> str:
    """Where no server seems to be there."""
    return sentence if CLOSED_AT_ONCE in sentence else f"{sentence}; start one with `autoglm serve`"


def needs(module: str, extra: str) -> ModuleType:
    """A package that only some installations have, or the sentence that says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this command needs the package {error.name}: pip install 'autoglm-triton[{extra}]'"
        ) from None


def _is_of_our_packages(error: Exception) -> bool:
    """The exporter's and the engine's own errors are sentences for users; importing their classes here is not light."""
    return any(kind.__module__ in ("autoglm_export.errors", "autoglm_engine.errors") for kind in type(error).__mro__)
