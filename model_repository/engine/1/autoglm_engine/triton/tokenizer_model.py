"""The tokenizer model's core: one request's tensors in, token ids and a packed request out, or one clear error."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Request, TokenIds
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.guided.after_thinking import resolved
from autoglm_engine.manifest import Manifest
from autoglm_engine.messages import Packed, pack_request
from autoglm_engine.options.bad_words import NAME as BAD_WORDS
from autoglm_engine.options.bad_words import word_tokens
from autoglm_engine.options.foreign_inputs import FOREIGN_INPUTS
from autoglm_engine.options.foreign_options import ForeignOptions
from autoglm_engine.options.options import OptionRules, read_tenant
from autoglm_engine.options.request_parameters import read_parameters
from autoglm_engine.options.sampling_json import NAMES
from autoglm_engine.options.table import OPTIONS
from autoglm_engine.options.triton_fields import TIMEOUT, shortest_deadline_ms
from autoglm_engine.tokenizer.artifact_texts import verify_texts
from autoglm_engine.tokenizer.prompt import Prompt, Prompter
from autoglm_engine.tokenizer.rendering.template_options import (
    ADD,
    CONTINUE,
    KWARGS,
    TEMPLATE_INPUTS,
    TemplateOptions,
    template_options,
)
from autoglm_engine.tokenizer.token_questions import Detokenize, Tokenize, TokenQuestion, read_token_question

Tensors = Mapping[str, npt.NDArray[Any]]
PROMPT_INPUTS = ("text_input", "messages")
TOOLS_INPUT = "tools"
IMAGES_INPUT = "images"
CONTROL_INPUT = "control"
INPUTS = (*PROMPT_INPUTS, TOOLS_INPUT, IMAGES_INPUT, *TEMPLATE_INPUTS, *OPTIONS)
SAMPLING_NAMES = frozenset(NAMES)
_USED = frozenset({TIMEOUT, *SAMPLING_NAMES})  # of request parameters
QUICK_BYTES = 4096  # of text; some 2 ms
_LISTS = frozenset(
    [
        *(name for name, option in OPTIONS.items() if option.is_list),
        *(name for name, foreign in FOREIGN_INPUTS.items() if foreign.is_list),
    ]
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """`request`: for the engine; where a question about tokens was asked, its answer as JSON, which is not sealed."""

    token_ids: TokenIds  # [num_prompt_tokens]
    request: Packed
    files: tuple[bytes, ...] = ()  # of the request's images


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What a request says, not yet encoded. `arrival`: seconds of the door's clock."""

    arrival: float
    values: dict[str, Any]  # options: name -> what the caller set
    foreign: dict[str, Any]  # the same of other backends' inputs
    parameters: dict[str, Any]  # Triton's
    timeout_us: int  # 0: none
    input_name: str  # text_input or messages
    prompt: bytes
    tools: bytes | None
    images: tuple[bytes, ...] = ()  # files or data URLs
    question: TokenQuestion | None = None  # None: the prompt is to be answered
    template: TemplateOptions = field(default_factory=TemplateOptions)

    @property
    def sampling(self) -> dict[str, Any]:
        """Of the parameters what vLLM's clients send so."""
        return {name: value for name, value in self.parameters.items() if name in SAMPLING_NAMES}

    @property
    def is_foreign(self) -> bool:
        return bool(self.foreign or self.sampling)

    @property
    def num_bytes(self) -> int:
        asked = self.question.num_bytes if isinstance(self.question, Detokenize) else 0
        return asked + len(self.prompt) + len(self.tools or b"") + sum(map(len, self.images))

    @property
    def tenant(self) -> str:
        """Raises InvalidRequest."""
        return read_tenant(self.values["tenant"]) if "tenant" in self.values else ""


class RequestPreprocessor:
    """Checks everything that a request says before it costs anything. Raises InvalidRequest."""

    def __init__(
        self,
        prompter: Prompter,
        rules: OptionRules,
        artifact: str,
        clock: Callable[[], float] = time.monotonic,
        eos_token_ids: Collection[int] = (),
        room: int | None = None,
    ) -> None:
        """`room`: bytes that a question about tokens and its answer may have together; None: any number."""
        self._room = room
        self._prompter = prompter
        self._rules = rules
        self._artifact = artifact
        self._foreign = ForeignOptions(eos_token_ids, prompter.word_ids)
        self._clock = clock

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, room: int | None = None) -> RequestPreprocessor:
        verify_texts(folder, manifest)
        prompter, rules = Prompter.load(folder, manifest), OptionRules.of(manifest)
        return cls(prompter, rules, manifest.short_digest, eos_token_ids=manifest.eos_token_ids, room=room)

    def close(self) -> None:
        self._prompter.close()

    @property
    def prompter(self) -> Prompter:
        return self._prompter

    def admit(self, tensors: Tensors, parameters: str = "", timeout_us: int = 0) -> Admitted:
        """All at once, on the caller's thread."""
        return self.encode(self.read(tensors, parameters, timeout_us))

    def read(self, tensors: Tensors, parameters: str = "", timeout_us: int = 0) -> ParsedRequest:
        """What is asked, before anything is rendered or encoded. `tensors`: name -> array with a leading batch
        dimension. `parameters`: Triton's request parameters as JSON. `timeout_us`: the request's timeout in
        microseconds, 0 for none."""
        arrival = self._clock()
        checked_parameters = read_parameters(parameters, INPUTS, _USED)
        values = {name: read_value(name, tensors[name]) for name in OPTIONS if name in tensors}
        foreign = {name: read_value(name, tensors[name]) for name in FOREIGN_INPUTS if name in tensors}
        question = None
        if CONTROL_INPUT in tensors:
            question = read_token_question(read_single(CONTROL_INPUT, tensors[CONTROL_INPUT]))
            _check_alone(tensors, question)
        if isinstance(question, Detokenize):
            return ParsedRequest(arrival, values, {}, {}, 0, "", b"", None, question=question)
        given = [name for name in PROMPT_INPUTS if name in tensors]
        if len(given) != 1:
            said = "both are set" if given else "neither is set"
            raise InvalidRequest(f"a request needs text_input or messages, and only one of them; {said}")
        prompt = read_single(given[0], tensors[given[0]])
        prompter = self._prompter if question is None else self._prompter.for_counting(question)
        prompter.check_size(prompt, given[0])
        tools = read_single(TOOLS_INPUT, tensors[TOOLS_INPUT]) if TOOLS_INPUT in tensors else None
        if tools is not None and given[0] != "messages":
            raise InvalidRequest("tools go with messages; text_input is what the model reads as it is")
        images = read_images(tensors[IMAGES_INPUT], given[0]) if IMAGES_INPUT in tensors else ()
        template = _read_template(tensors, given[0], question)
        return ParsedRequest(
            arrival,
            values,
            foreign,
            checked_parameters,
            timeout_us,
            given[0],
            prompt,
            tools,
            images,
            question,
            template,
        )

    def is_quick(self, asked: ParsedRequest) -> bool:
        """Encoding it is sure to take no longer than other work with a request."""
        has_words = asked.is_foreign or BAD_WORDS in asked.values
        if asked.question is not None:
            return False
        is_short = asked.input_name == "text_input" and len(asked.prompt) <= QUICK_BYTES and not has_words
        return is_short and self._prompter.is_quick

    def encode(self, asked: ParsedRequest, prompter: Prompter | None = None) -> Admitted:
        """`prompter`: in place of the preprocessor's own."""
        prompter = prompter or self._prompter
        if asked.question is not None:
            return self._answered(asked, asked.question, prompter)
        arrival, values = asked.arrival, asked.values
        if asked.is_foreign:
            values = self._foreign.translate(asked.foreign, values, asked.sampling)
        if BAD_WORDS in values:
            values = {**values, BAD_WORDS: word_tokens(values[BAD_WORDS], prompter.word_ids)}
        prompt = _prompt(asked, prompter)
        token_ids = prompt.token_ids
        checked = self._rules.check(values, prompt_length=len(token_ids))
        sampling = dataclasses.replace(checked.sampling, guide_after=resolved(checked.sampling, prompt.thinking))
        limit_ms = shortest_deadline_ms(checked.deadline_ms, asked.timeout_us, asked.parameters)
        request = Request(
            id="",
            prompt_ids=token_ids,
            sampling=sampling,
            stream=checked.stream,
            arrival=arrival,
            deadline=None if limit_ms is None else arrival + limit_ms / 1000,
            heartbeat_ms=checked.heartbeat_ms,
            tokenize_ms=(self._clock() - arrival) * 1000,
            priority=checked.priority,
            prompt_lookup=checked.prompt_lookup,
            cache=checked.cache,
            tenant=checked.tenant,
            user=checked.user,
            semantic=checked.semantic,
            question=None if checked.semantic is False else prompt.question,
            images=prompt.images,
            prompt_thinks=prompt.thinking is not None and prompt.thinking.is_open,
        )
        return Admitted(token_ids, pack_request(request, self._artifact), tuple(prompt.files))

    def _answered(self, asked: ParsedRequest, question: TokenQuestion, prompter: Prompter) -> Admitted:
        """An answer's size has little to do with the question's: whoever asks chooses it."""
        if isinstance(question, Detokenize):
            told = prompter.answers.text(question)
            token_ids = np.asarray(question.token_ids, dtype=np.int32)
        else:
            token_ids = _prompt(asked, prompter.for_counting(question)).token_ids
            told = prompter.answers.tokens(token_ids, question)
        answer = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
        needed = asked.num_bytes + token_ids.nbytes + answer.nbytes
        if self._room is not None and needed > self._room:
            raise InvalidRequest(
                f"the question and its answer take {needed} bytes of shared memory, and there are {self._room}; "
                "ask for fewer tokens"
            )
        return Admitted(token_ids, answer)


def _check_alone(tensors: Tensors, question: TokenQuestion) -> None:
    """Options are of answers, and here none is generated."""
    is_prompt = not isinstance(question, Detokenize)
    beside = {CONTROL_INPUT, "tenant", *((*PROMPT_INPUTS, TOOLS_INPUT, IMAGES_INPUT, KWARGS) if is_prompt else ())}
    if others := sorted(tensors.keys() - beside):
        raise InvalidRequest(f"{others[0]} does not go with control, which asks for tokens or their text alone")


def _prompt(asked: ParsedRequest, prompter: Prompter) -> Prompt:
    if asked.input_name == "messages":
        return prompter.from_messages(asked.prompt, asked.tools, asked.images, asked.template)
    return prompter.from_text(asked.prompt)


def _read_template(tensors: Tensors, prompt_input: str, question: TokenQuestion | None) -> TemplateOptions:
    """A question about tokens says in itself where the prompt ends. Raises InvalidRequest."""
    said = {name: read_single(name, tensors[name]) for name in TEMPLATE_INPUTS if name in tensors}
    if isinstance(question, Tokenize):
        ends = {ADD: question.add_generation_prompt, CONTINUE: question.continue_final_message}
        said |= {name: value for name, value in ends.items() if value is not None}
    if said and prompt_input != "messages":
        raise InvalidRequest(f"{next(iter(said))} goes with messages; text_input is what the model reads as it is")
    flags = {name: bool(said[name]) for name in (ADD, CONTINUE) if name in said}
    return template_options(said.get(KWARGS), flags.get(ADD), flags.get(CONTINUE))


def read_images(tensor: npt.NDArray[Any], prompt_input: str) -> tuple[bytes, ...]:
    check_batch(IMAGES_INPUT, tensor)
    if prompt_input != "messages":
        raise InvalidRequest("images go with messages, which have a part of type image for each")
    return tuple(tensor.reshape(-1).tolist())


def read_value(name: str, array: npt.NDArray[Any]) -> Any:
    """The Python value of an option's tensor; `stop`, say, is a list of bytes."""
    if name in _LISTS:
        check_batch(name, array)
        return array.reshape(-1).tolist()
    value = read_single(name, array)
    return value.item() if isinstance(value, np.generic) else value


def read_single(name: str, array: npt.NDArray[Any]) -> Any:
    check_batch(name, array)
    if array.size != 1:
        raise InvalidRequest(f"{name} has {array.size} values; it must have 1")
    return array.reshape(-1)[0]


def check_batch(name: str, array: npt.NDArray[Any]) -> None:
    if array.ndim != 2 or array.shape[0] != 1:
        raise InvalidRequest(f"{name} has shape {list(array.shape)}; its first (batch) dimension must be 1")
