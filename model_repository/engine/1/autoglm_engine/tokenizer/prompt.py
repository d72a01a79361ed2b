"""From what a caller sent to token ids: encoding, and its checks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm_engine.core import ImageSpan, SemanticQuery, TokenIds
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.options.parsing import decode_utf8
from autoglm_engine.vision.asked_size import AskedSize

from .artifact_texts import TOKENIZER_NAME, load_tokenizer
from .checkpoint_template import ChatTemplate
from .encoding import BoundedEncoder, Encoder, PlainEncoder
from .image_prompt import place_images, read_images, take_sizes
from .rendering.messages import parse_messages
from .rendering.template_options import TemplateOptions
from .rendering.thinking import PromptThinking
from .semantic_query import question_of_messages, question_of_text
from .token_questions import TokenAnswers, Tokenize
from .tools.definitions import Tool, parse_tools

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _longest_token(tokenizer: Tokenizer) -> int:
    """In bytes. A byte-level token spells a byte with up to two, so this is an upper bound."""
    return max((len(token.encode()) for token in tokenizer.get_vocab(with_added_tokens=True)), default=1)
