"""The tokenizer model's core: one request's tensors in, token ids and a packed request out, or one clear error."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .bad_words import NAME as BAD_WORDS
from .bad_words import word_tokens
from .core import Request, TokenIds
from .errors import InvalidRequest
from .foreign_inputs import FOREIGN_INPUTS
from .foreign_options import ForeignOptions
from .manifest import Manifest
from .options import OPTIONS, OptionRules
from .prompt import Prompt, Prompter, verify_texts
from .request_parameters import read_parameters
from .sampling_json import NAMES
from .triton_fields import TIMEOUT, shortest_deadline_ms
from .wire import Packed, pack_request

Tensors = Mapping[str, npt.NDArray[Any]]
PROMPT_INPUTS = ("text_input", "messages")
TOOLS_INPUT = "tools"
INPUTS = (*PROMPT_INPUTS, TOOLS_INPUT, *OPTIONS)
SAMPLING_NAMES = frozenset(NAMES)
_USED = frozenset({TIMEOUT, *SAMPLING_NAMES})  # of request parameters
_LISTS = frozenset({"stop", BAD_WORDS, *(name for name, foreign in FOREIGN_INPUTS.items() if foreign.is_list)})


@dataclass(frozen=True, slots=True)
class Admitted:
    token_ids: TokenIds  # [num_prompt_tokens]
    request: Packed


class Door:
    """Checks everything that a request says before it costs anything. Raises InvalidRequest."""

    def __init__(
        self,
        prompter: Prompter,
        rules: OptionRules,
        artifact: str,
        clock: Callable[[], float] = time.monotonic,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        self._prompter = prompter
        self._rules = rules
        self._artifact = artifact
        self._foreign = ForeignOptions(eos_token_ids, prompter.word_ids)
        self._clock = clock

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> Door:
        verify_texts(folder, manifest)
        prompter, rules = Prompter.load(folder, manifest), OptionRules.of(manifest)
        return cls(prompter, rules, manifest.short_digest, eos_token_ids=manifest.eos_token_ids)

    def close(self) -> None:
        self._prompter.close()

    def admit(self, tensors: Tensors, parameters: str = "", timeout_us: int = 0) -> Admitted:
        """`tensors`: name -> array with a leading batch dimension. `parameters`: Triton's request parameters as JSON.
        `timeout_us`: the request's timeout in microseconds, 0 for none."""
        arrival = self._clock()
        given = read_parameters(parameters, INPUTS, _USED)
        values = {name: read_value(name, tensors[name]) for name in OPTIONS if name in tensors}
        if not (FOREIGN_INPUTS.keys().isdisjoint(tensors) and SAMPLING_NAMES.isdisjoint(given)):
            values = self._with_foreign(values, tensors, given)
        if BAD_WORDS in values:
            values[BAD_WORDS] = word_tokens(values[BAD_WORDS], self._prompter.word_ids)
        prompt = self._prompt(tensors)
        token_ids = prompt.token_ids
        checked = self._rules.check(values, prompt_length=len(token_ids))
        limit_ms = shortest_deadline_ms(checked.deadline_ms, timeout_us, given)
        request = Request(
            id="",
            prompt_ids=token_ids,
            sampling=checked.sampling,
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
        )
        return Admitted(token_ids, pack_request(request, self._artifact))

    def _with_foreign(self, values: dict[str, Any], tensors: Tensors, parameters: Mapping[str, Any]) -> dict[str, Any]:
        foreign = {name: read_value(name, tensors[name]) for name in FOREIGN_INPUTS if name in tensors}
        sampling = {name: value for name, value in parameters.items() if name in SAMPLING_NAMES}
        return self._foreign.translate(foreign, values, sampling)

    def _prompt(self, tensors: Tensors) -> Prompt:
        given = [name for name in PROMPT_INPUTS if name in tensors]
        if len(given) != 1:
            said = "both are set" if given else "neither is set"
            raise InvalidRequest(f"a request needs text_input or messages, and only one of them; {said}")
        raw = read_single(given[0], tensors[given[0]])
        tools = read_single(TOOLS_INPUT, tensors[TOOLS_INPUT]) if TOOLS_INPUT in tensors else None
        if given[0] == "messages":
            return self._prompter.from_messages(raw, tools)
        if tools is not None:
            raise InvalidRequest("tools go with messages; text_input is what the model reads as it is")
        return self._prompter.from_text(raw)


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
