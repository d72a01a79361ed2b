"""From what a caller sent to token ids: the chat template, the encoding, and the checks of both."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm_engine.core import ImageSpan, SemanticQuery, TokenIds
from autoglm_engine.errors import ArtifactError, InvalidRequest
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.options.json_names import json_type
from autoglm_engine.options.parsing import decode_utf8
from autoglm_engine.vision.asked_size import AskedSize

from .encoding import BoundedEncoder, Encoder, PlainEncoder
from .image_prompt import place_images, read_images, take_sizes
from .kept_messages import KeptMessages
from .rendering.final_message import continued, last_text
from .rendering.template_options import TemplateOptions
from .rendering.thinking import REASONING_FIELDS, PromptThinking, ThinkingMarks, is_thinking_token, thinking_marks
from .semantic_query import question_of_messages, question_of_text
from .template_process import TemplateLimits, TemplateProcess
from .token_questions import TokenAnswers, Tokenize
from .tool_format import ToolWays, tool_ways, visible_tokens
from .tools.call_form import PLAIN_TEXT, CallForm
from .tools.definitions import Tool, parse_tools
from .tools.found_form import find_call_form
from .tools.messages import check_tool_fields, has_calls, with_arguments_as_text
from .tools.metadata_turns import in_metadata, with_tools_in_system_item
from .tools.plain_text import in_plain_text, needs_plain_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "chat_template.jinja"
TOOL_TEMPLATE_NAME = "chat_template_tool_use.jinja"  # where there are tools, if the checkpoint has one for them
MAX_TEMPLATE_BYTES = 1 << 20
MAX_RENDERED_CHARACTERS = 1 << 26
MAX_TRIED_CHARACTERS = 1 << 18  # of a conversation that is rendered to see how the template does it
MAX_ROLE_CHARACTERS = 64  # most characters of a role: it ends up in the prompt
MAX_COUNTED_BYTES = 4 << 20  # of a prompt whose tokens are told, however many the model takes
_CHARACTERS_PER_TOKEN = 8  # more than texts have on average


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: TokenIds  # int32 [num_tokens]
    question: SemanticQuery | None
    images: tuple[ImageSpan, ...] = ()
    files: tuple[bytes, ...] = ()  # of the images
    thinking: PromptThinking | None = None


class Prompter:
    """Makes prompts for one artifact: one at a time where it renders, or encodes what is long."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        max_length: int,
        encoder: Encoder | None = None,
        vision: VisionSettings | None = None,
    ) -> None:
        self._vision = vision
        self.answers = TokenAnswers(tokenizer)
        self._encoder = encoder or PlainEncoder(tokenizer)
        self._template = template
        self._max_tokens = max_length - 1  # one position is left for the answer
        self._longest_token = _longest_token(tokenizer)
        self._max_bytes = max_length * self._longest_token
        self._asked = Tokenize()

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> Prompter:
        tokenizer = load_tokenizer(folder)
        template = ChatTemplate.load(folder, tokenizer, manifest)
        if template is not None:
            template.start()
        encoder = BoundedEncoder.load(folder / TOKENIZER_NAME, tokenizer)
        return cls(tokenizer, template, manifest.max_length, encoder, manifest.vision)

    def another(self) -> Prompter:
        """To be used beside this one: with processes of its own, which start when they are needed."""
        other = copy.copy(self)
        other._encoder = self._encoder.another()
        other._template = None if self._template is None else self._template.another()
        return other

    def for_counting(self, asked: Tokenize) -> Prompter:
        """With the same processes, for prompts whose tokens are told and not computed: longer than the model takes,
        too."""
        other = copy.copy(self)
        other._asked = asked
        other._max_tokens = MAX_COUNTED_BYTES
        other._max_bytes = max(self._max_bytes, MAX_COUNTED_BYTES)
        return other

    @property
    def is_quick(self) -> bool:
        """`from_text` takes no longer with a short text than its length says."""
        return self._encoder.is_tame

    def close(self) -> None:
        """Let go of its processes; they start again where it is used again."""
        self._encoder.close()
        if self._template is not None:
            self._template.close()

    def kill(self) -> None:
        """Ends what is being made, from any thread."""
        self._encoder.kill()
        if self._template is not None:
            self._template.kill()

    def from_text(self, raw: bytes) -> Prompt:
        """With the special tokens that the tokenizer itself adds. Raises InvalidRequest."""
        if not raw:
            raise InvalidRequest("text_input is empty; it must have at least one character")
        self.check_size(raw, "text_input")
        text = decode_utf8(raw, "text_input")
        return Prompt(self._encode(text, "text_input", special_tokens=True), question_of_text(text))

    def from_messages(
        self,
        raw: bytes,
        tools: bytes | None = None,
        images: Sequence[bytes] = (),
        options: TemplateOptions | None = None,
    ) -> Prompt:
        """Of the rendered conversation; `tools`: what the model may call, as JSON; `images`: files or data
        URLs, one for each part of type image, in their order; `options`: what else the template is told. Raises
        InvalidRequest."""
        if self._template is None:
            raise InvalidRequest("this model has no chat template, so it takes text_input and not messages")
        self.check_size(raw, "messages")
        messages = parse_messages(decode_utf8(raw, "messages"))
        sizes = take_sizes(messages)
        self._check_images(len(sizes), len(images))
        rendered = self._template.render(messages, self._tools(tools), self._max_bytes, options)
        if _has_surrogate(rendered):
            raise InvalidRequest("messages hold half of a UTF-16 surrogate pair, which is no character")
        ids = self._encode(rendered, "messages", special_tokens=False)
        thinking = self._template.thinking_in(rendered, messages, options)
        if images:
            return dataclasses.replace(self._with_images(ids, images, sizes), thinking=thinking)
        # Answers that act are not shared by what a question means: its details are the arguments.
        question = None if tools is not None else question_of_messages(messages, rendered)
        return Prompt(ids, question, thinking=thinking)

    def _check_images(self, num_parts: int, num_images: int) -> None:
        if self._vision is None and (num_parts or num_images):
            raise InvalidRequest("this model reads text only, and the request has images")
        if num_parts != num_images:
            raise InvalidRequest(f"messages have {num_parts} parts of type image, and images has {num_images} values")

    def _with_images(self, ids: TokenIds, raw: Sequence[bytes], sizes: Sequence[AskedSize]) -> Prompt:
        assert self._vision is not None, "images for a model that reads none"
        images = read_images(raw, sizes, self._vision)
        ids, spans = place_images(ids, images, self._vision)
        if len(ids) > self._max_tokens:
            num_image_tokens = sum(span.num_tokens for span in spans)
            raise InvalidRequest(
                f"messages has {len(ids)} tokens, {num_image_tokens} of them images; the model takes 1 to "
                f"{self._max_tokens}"
            )
        return Prompt(ids, None, spans, tuple(image.file for image in images))

    def word_ids(self, text: str) -> list[int]:
        """Without special tokens."""
        return [int(token_id) for token_id in self._encoder.encode(text, "a word", special_tokens=False)]

    def _tools(self, raw: bytes | None) -> list[Tool] | None:
        if raw is None:
            return None
        self.check_size(raw, "tools")
        return parse_tools(decode_utf8(raw, "tools"))

    def check_size(self, raw: bytes, name: str) -> None:
        """Refuses text that cannot fit, before any work is spent on it: no token stands for more bytes than the
        longest one."""
        if len(raw) > self._max_bytes:
            raise InvalidRequest(
                f"{name} has {len(raw)} bytes, which cannot fit into the {self._max_tokens} prompt tokens that the "
                f"model takes; at most {self._max_bytes} bytes are read"
            )

    def _encode(self, text: str, name: str, *, special_tokens: bool) -> TokenIds:
        # Most texts that are too long show it in their beginning: then the rest is not encoded at all. Where the
        # beginning ends, it may cut a token into as many as the longest one has bytes.
        enough = self._max_tokens + self._longest_token
        if (asked := self._asked.add_special_tokens) is not None:
            special_tokens = asked
        beginning = text[: enough * _CHARACTERS_PER_TOKEN]
        ids = self._encoder.encode(beginning, name, special_tokens=special_tokens)
        if len(beginning) < len(text) and len(ids) <= enough:
            beginning, ids = text, self._encoder.encode(text, name, special_tokens=special_tokens)
        if not len(ids):
            raise InvalidRequest(f"{name} encodes to no token; it must encode to at least 1")
        if len(ids) > self._max_tokens:
            count = f"{len(ids)}" if len(beginning) == len(text) else f"more than {self._max_tokens}"
            raise InvalidRequest(f"{name} has {count} tokens; the model takes 1 to {self._max_tokens}")
        return ids


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
        source, for_tools = (_read_template(folder / name) for name in (TEMPLATE_NAME, TOOL_TEMPLATE_NAME))
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
        turns = [_without_nulls(turn) for turn in messages]
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
        messages = [_without_nulls(turn) for turn in messages]
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


def _read_template(path: Path) -> str | None:
    if not path.exists():
        return None
    if (size := path.stat().st_size) > MAX_TEMPLATE_BYTES:
        raise ArtifactError(f"{path} has {size} bytes; a chat template has at most {MAX_TEMPLATE_BYTES}")
    return path.read_text(encoding="utf-8")


def verify_texts(folder: Path, manifest: Manifest) -> None:
    """Check the content of the tokenizer and of the chat template, where there is one, before either is read. A
    template that somebody put there is refused: no digest counts it."""
    templates = [n for n in (TEMPLATE_NAME, TOOL_TEMPLATE_NAME) if n in manifest.files or (folder / n).exists()]
    manifest.verify_files(folder, [TOKENIZER_NAME, *templates], digests=True)


def load_tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_NAME
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    sources = [_read_template(folder / name) for name in (TEMPLATE_NAME, TOOL_TEMPLATE_NAME)]
    return with_visible_calls(tokenizer, *(source for source in sources if source is not None))


def with_visible_calls(tokenizer: Tokenizer, *sources: str) -> Tokenizer:
    """The same ids of the same texts; but tokens that calls are made of, and that thinking stands between, are special
    no more, so that decoding keeps them. `sources`: of chat templates."""
    from tokenizers import Tokenizer

    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    visible = visible_tokens(tokenizer, sources) | set(filter(is_thinking_token, special))
    if not visible:
        return tokenizer
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in visible
    return Tokenizer.from_str(json.dumps(state))


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """Beside calls, content that is null or absent is "": templates add it to text, and test whether it is empty.
    Reasoning has each of the names that templates read it by, as transformers gives it."""
    given = {key: value for key, value in message.items() if value is not None}
    if (thought := next((given[name] for name in REASONING_FIELDS if name in given), None)) is not None:
        given = {"thinking": thought, **given, "reasoning_content": thought}
    return {"role": given["role"], "content": "", **given} if has_calls(given) else given


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Checks what every template relies on: a list of objects with a role and a content, which may be null where an
    assistant calls functions. Raises InvalidRequest."""
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"messages is not JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a JSON list of at least one {role, content} object")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    return messages


def _check_message(message: Any, name: str) -> None:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{name} is {json_type(message)}; it must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or not 1 <= len(role) <= MAX_ROLE_CHARACTERS:
        raise InvalidRequest(f"{name}.role must be a string of 1 to {MAX_ROLE_CHARACTERS} characters, such as user")
    check_tool_fields(message, name)
    for field in REASONING_FIELDS:
        if message.get(field) is not None and not isinstance(message[field], str):
            raise InvalidRequest(f"{name}.{field} is {json_type(message[field])}; it must be a string")
    content = message.get("content")
    if content is None and has_calls(message):
        return
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{name}.content[{index}]")
    elif not isinstance(content, str):
        raise InvalidRequest(f"{name}.content is {json_type(content)}; it must be a string or a list of parts")


def _check_part(part: Any, name: str) -> None:
    if isinstance(part, dict) and part.get("type") == "image":
        return  # `take_sizes` reads the rest
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise InvalidRequest(
            f'{name} must be {{"type": "text", "text": string}}, or {{"type": "image"}} for the next of the images'
        )


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _longest_token(tokenizer: Tokenizer) -> int:
    """In bytes. A byte-level token spells a byte with up to two, so this is an upper bound."""
    return max((len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True)), default=1)
