"""A checkpoint's chat template: how it is told tools and calls, what is read off it, and its rendering."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm_engine.errors import ArtifactError, InvalidRequest
from autoglm_engine.manifest import Manifest

from .kept_messages import KeptMessages
from .rendering.final_message import continued, last_text
from .rendering.template_options import TemplateOptions
from .rendering.thinking import PromptThinking, ThinkingMarks, thinking_marks
from .template_process import TemplateLimits, TemplateProcess
from .tool_format import ToolWays, tool_ways
from .tools.call_form import PLAIN_TEXT, CallForm
from .tools.definitions import Tool
from .tools.found_form import find_call_form
from .tools.messages import with_arguments_as_text
from .tools.metadata_turns import in_metadata, with_tools_in_system_item
from .tools.plain_text import in_plain_text, needs_plain_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

from .artifact_texts import TEMPLATE_NAME, TOOL_TEMPLATE_NAME, read_template
from .rendering.messages import without_nulls

MAX_RENDERED_CHARACTERS = 1 << 26
MAX_TRIED_CHARACTERS = 1 << 18  # of a conversation that is rendered to see how the template does it


class ChatTemplate:
    """A checkpoint's template, as transformers renders it, without fields that are null, and in a process that has
    limits. Tools and calls are given to a template as it takes them (`ToolWays`); for one that takes none they are put
    into the messages. A message that it passes over is an error.

    `for_tools`: a template of its own for conversations with tools. `end_tokens`: that end an answer; `hidden`: that
    decoding leaves out. Neither can tell a call."""

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        limits: TemplateLimits | None = None,
        for_tools: ChatTemplate | None = None,
        *,
        end_tokens: Collection[str] = (),
        hidden: Collection[str] = (),
    ) -> None:
        self._source = source
        self._end_tokens, self._hidden = end_tokens, hidden
        self._process = TemplateProcess(source, special_tokens, limits)
        self._told = tool_ways(source)
        self._seconds_tried = 0.0
        self._kept = KeptMessages()
        self._for_tools = for_tools

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer, manifest: Manifest) -> ChatTemplate | None:
        source, for_tools = (read_template(folder / name) for name in (TEMPLATE_NAME, TOOL_TEMPLATE_NAME))
        special = manifest.special_tokens
        if special is None:  # of an exporter that wrote ids alone
            ids = {"bos_token": manifest.bos_token_id, "eos_token": next(iter(manifest.eos_token_ids), None)}
            special = {name: str(tokenizer.id_to_token(i)) for name, i in ids.items() if i is not None}
        if source is None:
            return None
        ends = [str(tokenizer.id_to_token(i)) for i in manifest.eos_token_ids if tokenizer.id_to_token(i) is not None]
        hidden = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]

        def made(text: str, for_tools: ChatTemplate | None = None) -> ChatTemplate:
            return cls(text, special, for_tools=for_tools, end_tokens=ends, hidden=hidden)

        return made(source, None if for_tools is None else made(for_tools))

    @property
    def call_form(self) -> CallForm:
        """How the model writes calls: found by some renderings, once. Raises ArtifactError where the template cannot
        be compiled."""
        return self._for_tools.call_form if self._for_tools else self._found[1]

    @cached_property
    def _found(self) -> tuple[ToolWays, CallForm]:
        """What the template takes of tools, and the form of calls: plain text where that cannot be read."""
        form = None
        if self._told.calls != "plain text":
            form = find_call_form(self._source, self._tried, self._end_tokens)
        if form is None or any(token in text for token in self._hidden for text in form.needed()):
            return ToolWays(), PLAIN_TEXT
        return self._told, form

    @cached_property
    def _has_system(self) -> bool:
        """Whether the template takes a system message."""
        turns = [{"role": "system", "content": "zqsystem"}, {"role": "user", "content": "zqasked"}]
        try:
            with self._on_trial():
                return "zqsystem" in self._rendered(turns, None, MAX_TRIED_CHARACTERS, TemplateOptions(), ToolWays())
        except InvalidRequest:
            return False

    def _tried(self, messages: list[dict[str, Any]], tools: list[Tool], add_generation_prompt: bool) -> str:
        options = TemplateOptions(add_generation_prompt=add_generation_prompt)
        turns = [without_nulls(turn) for turn in messages]
        with self._on_trial():
            return self._rendered(turns, tools, MAX_TRIED_CHARACTERS, options, self._told)

    @contextmanager
    def _on_trial(self) -> Iterator[None]:
        """Around a rendering that shows what the template does. Raises ArtifactError where all of them take too long:
        how many there are is the template's to say, and each may go to its own limit."""
        if self._seconds_tried > (limit := self._process.limits.trial_seconds):
            sentence = f"the chat template takes more than {limit:g} s to show how it marks thinking and calls"
            raise ArtifactError(sentence)
        begin = time.monotonic()
        try:
            yield
        finally:
            self._seconds_tried += time.monotonic() - begin

    def another(self) -> ChatTemplate:
        """To render beside this one: with a process of its own, which is not started."""
        other = copy.copy(self)
        other._process = self._process.another()
        other._for_tools = self._for_tools and self._for_tools.another()
        return other

    def start(self) -> None:
        """Compile it now, and not with the first request. Raises ArtifactError."""
        for process in self._processes():
            process.start()
        _ = self.thinking
        for template in filter(None, (self, self._for_tools)):
            _ = template._found, template._has_system

    @cached_property
    def thinking(self) -> ThinkingMarks | None:
        """The marks around what the model thinks; some renderings. Raises ArtifactError where it cannot be compiled."""
        return thinking_marks(self._source, self._shown)

    def thinking_in(
        self, rendered: str, messages: Sequence[dict[str, Any]], options: TemplateOptions | None = None
    ) -> PromptThinking | None:
        """Whether the prompt that was made of the messages ends inside of thinking."""
        if (marks := self.thinking) is None:
            return None
        if options is None or not options.continue_final_message:
            return PromptThinking(marks, marks.is_open(rendered), marks.is_closed(rendered))
        said = last_text(messages[-1]).rstrip()
        is_open = marks.is_open_in(said, rendered.rstrip().removesuffix(said))
        return PromptThinking(marks, is_open, not is_open)

    def _shown(
        self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any], *, add_generation_prompt: bool
    ) -> str | None:
        names = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            with self._on_trial():
                return self._process.render({**names, **variables}, MAX_TRIED_CHARACTERS)
        except InvalidRequest:
            return None

    def close(self) -> None:
        for process in self._processes():
            process.close()

    def kill(self) -> None:
        """Ends what is being rendered, from any thread."""
        for process in self._processes():
            process.kill()

    def _processes(self) -> list[TemplateProcess]:
        return [self._process, *(self._for_tools._processes() if self._for_tools else ())]

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Tool] | None = None,
        max_characters: int = MAX_RENDERED_CHARACTERS,
        options: TemplateOptions | None = None,
    ) -> str:
        """Raises InvalidRequest with the template's own words when it refuses the messages, and where it goes beyond
        its limits on them."""
        if tools is not None and self._for_tools is not None:
            return self._for_tools.render(messages, tools, max_characters, options)
        messages = [without_nulls(turn) for turn in messages]
        ways = self._told
        if needs_plain_text(messages, tools):
            ways, form = self._found
            if ways.calls == "plain text":
                messages, tools = in_plain_text(messages, tools, has_system=self._has_system), None
            elif form.arguments_as_text:
                messages = [with_arguments_as_text(turn) for turn in messages]

        def rendered(turns: list[dict[str, Any]]) -> str:
            return self._rendered(turns, tools, max_characters, options or TemplateOptions(), ways)

        try:
            text = rendered(messages)
            self._kept.check(messages, text, rendered)
        except RecursionError:
            raise InvalidRequest("messages are nested too deeply") from None
        return text

    def _rendered(
        self,
        messages: list[dict[str, Any]],
        tools: list[Tool] | None,
        max_characters: int,
        options: TemplateOptions,
        ways: ToolWays,
    ) -> str:
        if ways.calls == "metadata":
            messages = in_metadata(messages)
        if tools and ways.tools == "system item":
            messages, tools = with_tools_in_system_item(messages, tools), None
        names = {"tools": tools, "documents": None, **options.variables}
        names["add_generation_prompt"] = options.add_generation_prompt

        def rendered(turns: list[dict[str, Any]]) -> str:
            return self._process.render({**names, "messages": turns}, max_characters)

        return continued(messages, rendered) if options.continue_final_message else rendered(messages)
