"""`autoglm chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoglm_client.client import Client
from autoglm_client.exceptions import AutoGLMError, CannotConnectError, InvalidRequestError
from autoglm_client.images.image import Image
from autoglm_client.options import GenerationOptions
from autoglm_client.types import Content, Message, Result

from autoglm_cli.errors import CommandError, fail, sentence_of
from autoglm_cli.options.answer import AnswerOptions, System
from autoglm_cli.options.connection import ConnectionOptions
from autoglm_cli.options.groups import grouped
from autoglm_cli.output import notes, stage_table, summary_line, write_answer

_HELP = """/reset          forget the conversation
/system TEXT    set the system message, and forget the conversation
/image FILE     show the model this PNG, JPEG or WEBP file with the next question;
                detail=low behind it: of 512 x 512 pixels at most
/retry          drop the last answer and ask again
/stats          speed and stage times of the last answer
/save FILE      write the conversation as JSON
/exit           leave (so does Ctrl-D); Ctrl-C cancels an answer"""

_DETAIL = " detail="  # behind the name of an image's file


@grouped
def chat(
    system: System = None,
    *,
    options: AnswerOptions,
    server: ConnectionOptions,
) -> None:
    """Chat with the model. Ctrl-C cancels the answer, not the program; /help lists the commands.

    /image FILE shows it a screenshot with the next question.

    \b
    Examples:
      autoglm chat
      autoglm chat --system "You answer in one sentence." -t 0.7
      autoglm chat --url gpu-box:8001
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # line editing and history for input()
    with server.connection().client(options.timeouts()) as client:
        check_ready(client)
        notes().print("[dim]/help lists the commands[/]", markup=True)
        Conversation(client, options.options(), system).run()


def check_ready(client: Client) -> None:
    state = client.health()
    if not state.live:
        raise CannotConnectError(state.detail)
    if not state.ready:
        raise CommandError(f"the server is not ready: {state.detail}")


@dataclass(slots=True)
class Conversation:
    client: Client
    options: GenerationOptions
    system: str | None
    turns: list[Message] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)  # of the next question
    last: Result | None = None

    def run(self) -> None:
        while (line := _read_line()) is not None:
            if line.startswith("/"):
                if not self.command(line):
                    return
            elif line.strip():
                self.ask_with_images(line)

    def command(self, line: str) -> bool:
        """Whether to go on."""
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: notes().print(_HELP),
            "/reset": lambda _: self.forget(),
            "/image": self.show_image,
            "/system": self.set_system,
            "/retry": lambda _: self.retry(),
            "/stats": lambda _: self.show_stats(),
            "/save": self.save,
        }
        if name in ("/exit", "/quit"):
            return False
        if name in commands:
            commands[name](rest.strip())
        else:
            fail(f"{name} is no command; /help lists them")
        return True

    def ask_with_images(self, text: str) -> None:
        """They wait for the next question where this one has no answer."""
        if self.ask([*self.images, text] if self.images else text):
            self.images.clear()

    def ask(self, content: Content) -> bool:
        """Whether there was an answer, or the beginning of one."""
        self.turns.append(Message("user", content))
        said: list[str] = []
        try:
            self._stream_answer(said)
        except KeyboardInterrupt:
            notes().print("\n[dim](cancelled)[/]", markup=True)
        except AutoGLMError as error:
            fail(sentence_of(error))
        if said:
            self.turns.append(Message("assistant", "".join(said)))
        else:
            self.turns.pop()
        return bool(said)

    def retry(self) -> None:
        while self.turns and self.turns[-1].role == "assistant":
            self.turns.pop()
        if self.turns:
            self.ask(self.turns.pop().content)

    def set_system(self, text: str) -> None:
        self.system = text or None
        self.forget()

    def forget(self) -> None:
        self.turns.clear()
        self.images.clear()

    def show_image(self, asked: str) -> None:
        name, detail = _image_asked(asked)
        try:
            self.images.append(Image(Path(name).expanduser(), detail=detail))
        except InvalidRequestError as error:
            fail(sentence_of(error))
        else:
            notes().print(f"[dim]({len(self.images)} with the next question)[/]", markup=True)

    def show_stats(self) -> None:
        if self.last is None:
            fail("there is no answer yet")
            return
        notes().print(summary_line(self.last))
        notes().print(stage_table(self.last))

    def save(self, name: str) -> None:
        if not name:
            fail("/save needs a file name")
            return
        turns = [{"role": turn.role, "content": _saved(turn.content)} for turn in self.messages]
        try:
            Path(name).write_text(json.dumps(turns, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"{name} cannot be written: {error.strerror}")

    @property
    def messages(self) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), *self.turns]

    def _stream_answer(self, said: list[str]) -> None:
        with self.client.stream(self.messages, self.options) as stream:
            for piece in stream:
                said.append(piece.text)
                write_answer(piece.text)
            self.last = stream.result
        sys.stdout.write("\n")


def _image_asked(asked: str) -> tuple[str, str]:
    """The file's name, which may have spaces, and the detail that stands behind it."""
    name, found, detail = asked.rpartition(_DETAIL)
    return (name.rstrip(), detail) if found else (asked, "auto")


def _saved(content: Content) -> Any:
    """As OpenAI's API has it."""
    return content if isinstance(content, str) else [_saved_part(part) for part in content]


def _saved_part(part: Any) -> Mapping[str, Any]:
    if isinstance(part, Image):
        detail = {name: value for name, value in part.mark.items() if name == "detail"}
        return {"type": "image_url", "image_url": {"url": part.data_url, **detail}}
    return {"type": "text", "text": part} if isinstance(part, str) else part


def _read_line() -> str | None:
    """None at the end of the input. Ctrl-C at the prompt drops the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            sys.stdout.write("\n" if sys.stdin.isatty() else "")
            return None
        except KeyboardInterrupt:
            sys.stdout.write("\n")
