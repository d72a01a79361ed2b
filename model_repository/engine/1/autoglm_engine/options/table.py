"""The table of options: what a request may ask for, in which range, and where it can be asked.

The engine and the exporter read it as it is. `make options` writes from it what cannot import it: the inputs of each
config.pbtxt, the fields of client, command line and gateway, and the tables of the docs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Literal

from autoglm_engine.core import DEFAULT_PRIORITY, CacheUse
from autoglm_engine.settings.model import DAY_MS

from .bad_words import MAX_BAD_WORD_CHARACTERS, MAX_BAD_WORDS
from .parsing import MAX_BIAS, MAX_BIASES, MAX_GUIDE_BYTES

Kind = Literal["INT32", "INT64", "FP32", "BOOL", "STRING", "STRINGS", "JSON"]
Bound = float | Literal["max_length", "vocab_size", "max_tokens"]
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_USER_CHARACTERS = 256
DEFAULT_MAX_TOKENS = 256
MAX_TENANT_CHARACTERS = 128
HOUR_MS = 3_600_000
MIN_HEARTBEAT_MS = 100
MAX_PROMPT_LOOKUP = 16
MAX_PRIORITY = 9
GUIDE_AFTER_THINKING = "thinking"
_TEXT_KINDS = ("STRING", "STRINGS", "JSON")


class Surface(Flag):
    """Where an option can be asked, beside the tensor that every one has."""

    CLIENT = auto()  # a keyword of `Client.generate` and its like
    OPENAI = auto()  # a field of OpenAI's or vLLM's API: `autoglm_gateway.api.schema` has its form and range there
    EXTENSION = auto()  # a field of the gateway's own, `extra_body` of OpenAI's package
    VLLM = auto()  # a sampling parameter of vLLM, of the same name and meaning
    COMMAND = auto()  # a flag of `autoglm generate`, `chat` and `batch`


NOWHERE = Surface(0)
CLIENT, OPENAI, EXTENSION, VLLM, COMMAND = Surface


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `low` and `high` belong to the range unless `low_open`; None is no bound.

    `meaning`: one sentence, the same everywhere. `unset`: what holds without the option, where `default` does not say
    all. `characters` and `max_bytes` bound a text, `max_items` how many of them there are. `allowed`: the range in
    words, where it is more than that. `see`: the place in docs/ that says more.
    """

    name: str
    kind: Kind
    default: Any = None
    low: Bound | None = None
    high: Bound | None = None
    surfaces: Surface = NOWHERE
    low_open: bool = False
    from_model: bool = False  # the checkpoint's generation config may set the default
    model_key: str = ""  # where it has another name there
    choices: tuple[str, ...] = ()
    max_items: int | None = None
    characters: tuple[int, int] | None = None
    max_bytes: int | None = None
    short: str = ""  # the flag's short form
    aliases: tuple[str, ...] = ()  # what other servers call it; a request that uses one is told the name here
    meaning: str = ""
    unset: str = ""
    allowed: str = ""
    see: str = ""

    @property
    def dtype(self) -> str:
        """Triton's."""
        return "STRING" if self.kind in _TEXT_KINDS else self.kind

    @property
    def is_list(self) -> bool:
        """Its tensor has any number of elements, else one."""
        return self.kind == "STRINGS"

    @property
    def is_number(self) -> bool:
        return self.low is not None


# fmt: off
PROMPTS = {option.name: option for option in (
    Option("text_input", "STRING", unset="one of these two", allowed="not empty, valid UTF-8",
           meaning="Text that the model continues as it is."),
    Option("messages", "JSON", unset="one of these two",
           allowed="list of {role, content}, with `tool_calls`, `tool_call_id` and `name` where functions were called",
           meaning="Conversation, for the chat template."),
    Option("tools", "JSON", (), surfaces=CLIENT | OPENAI, see="gateway.md#tools",
           allowed="list of 1 ... 128 functions in the form of OpenAI's API; with messages only",
           meaning="Functions that the model may call; calls are part of the answer's text, in the model's own form."),
    Option("chat_template_kwargs", "JSON", (), surfaces=CLIENT | OPENAI | COMMAND, see="gateway.md#thinking",
           allowed='up to 65,536 bytes: an object such as {"enable_thinking": false}; with messages only',
           meaning="Variables for the chat template; others do nothing."),
    Option("add_generation_prompt", "BOOL", surfaces=CLIENT | OPENAI, unset="true, unless `continue_final_message` is",
           allowed="with messages only", meaning="End the prompt with the beginning of an assistant's turn."),
    Option("continue_final_message", "BOOL", False, surfaces=CLIENT | OPENAI,
           allowed="with messages only; not beside `add_generation_prompt` true",
           meaning="Go on with the last message instead of a new one."),
    Option("images", "STRINGS", (),
           allowed="a PNG, JPEG or WEBP file, or a data URL in base64, for each part of type image; with messages only",
           meaning="What the model sees, in the order of the parts. No URL is fetched."),
)}

OPTIONS = {option.name: option for option in (
    Option("max_tokens", "INT32", DEFAULT_MAX_TOKENS, 1, "max_length", CLIENT | OPENAI | VLLM | COMMAND, short="-n",
           from_model=True, model_key="max_new_tokens", unset="at most the room in the slot",
           meaning="Longest answer, in tokens.",
           aliases=("max_new_tokens", "max_completion_tokens", "max_output_len", "request_output_len", "max_length")),
    Option("min_tokens", "INT32", 0, 0, "max_tokens", CLIENT | EXTENSION | VLLM, from_model=True,
           model_key="min_new_tokens", aliases=("min_length",),
           meaning="Shortest answer, in tokens."),
    Option("temperature", "FP32", 0.0, 0, 100, CLIENT | OPENAI | VLLM | COMMAND, from_model=True, short="-t",
           aliases=("do_sample",), meaning="Sampling temperature; 0 is greedy."),
    Option("top_k", "INT32", 0, -1, "vocab_size", CLIENT | EXTENSION | VLLM | COMMAND, from_model=True,
           meaning="Sample from this many of the most likely tokens; 0 and -1 are all."),
    Option("top_p", "FP32", 1.0, 0, 1, CLIENT | OPENAI | VLLM | COMMAND, from_model=True, low_open=True,
           meaning="Sample from the most likely tokens that have this total probability."),
    Option("min_p", "FP32", 0.0, 0, 1, CLIENT | EXTENSION | VLLM, from_model=True,
           meaning="Drop tokens below this share of the most likely one's probability; 0 is off."),
    Option("repetition_penalty", "FP32", 1.0, 0, 10, CLIENT | EXTENSION | VLLM, from_model=True, low_open=True,
           meaning="Above 1, tokens of prompt and answer become less likely to be repeated."),
    Option("presence_penalty", "FP32", 0.0, -2, 2, CLIENT | OPENAI | VLLM,
           meaning="Subtracted from the logit of every token that is in the answer."),
    Option("frequency_penalty", "FP32", 0.0, -2, 2, CLIENT | OPENAI | VLLM,
           meaning="Subtracted from a token's logit for each time that it is in the answer."),
    Option("seed", "INT64", None, 0, 2**63 - 1, CLIENT | OPENAI | VLLM | COMMAND, aliases=("random_seed",),
           unset="random", meaning="Makes a sampled answer repeatable."),
    Option("stop", "STRINGS", (), surfaces=CLIENT | OPENAI | VLLM | COMMAND, max_items=MAX_STOP_STRINGS,
           characters=(1, MAX_STOP_CHARACTERS), aliases=("stop_words", "stop_sequences"),
           meaning="End the answer before this text."),
    Option("ignore_eos", "BOOL", False, surfaces=CLIENT | EXTENSION | VLLM,
           meaning="Continue after the end-of-sequence token."),
    Option("stream", "BOOL", False, surfaces=OPENAI, meaning="Send the answer while it is generated."),
    Option("logprobs", "INT32", 0, 0, 20, CLIENT | OPENAI | VLLM,
           aliases=("return_log_probs", "return_logprobs", "top_logprobs"),
           meaning="Log-probabilities of each chosen token and of this many of the most likely ones; 0 is none."),
    Option("deadline_ms", "INT32", None, 1, DAY_MS, CLIENT, unset="as the setting `default_deadline_ms` says",
           see="serving/requests.md#priorities-and-timeouts",
           meaning="Milliseconds from arrival after which the server ends the answer."),
    Option("heartbeat_ms", "INT32", None, MIN_HEARTBEAT_MS, HOUR_MS, CLIENT,
           unset="with `stream` as the setting `heartbeat_ms` says",
           meaning="Milliseconds of silence after which an empty response shows whether the client is there."),
    Option("priority", "INT32", DEFAULT_PRIORITY, 0, MAX_PRIORITY, CLIENT | OPENAI | COMMAND,
           see="serving/requests.md#priorities-and-timeouts",
           meaning="Place in the queue: 1 goes first, 9 last; 0 is the default."),
    Option("prompt_lookup", "INT32", None, 0, MAX_PROMPT_LOOKUP, CLIENT | EXTENSION,
           unset="as the setting `speculation` says", see="serving/settings.md#drafts-by-prompt-lookup",
           meaning="Most tokens drafted at a time from earlier text; answers stay the same."),
    Option("cache", "STRING", CacheUse.DEFAULT, surfaces=CLIENT | EXTENSION | COMMAND,
           choices=tuple(use.value for use in CacheUse), see="serving/caching.md#the-response-cache",
           meaning="Use of cached answers: default, bypass, refresh, or only (a miss fails)."),
    Option("tenant", "STRING", "", surfaces=CLIENT, characters=(0, MAX_TENANT_CHARACTERS),
           meaning="Cached answers and prompt prefixes are shared within a tenant only."),
    Option("user", "STRING", "", surfaces=CLIENT | OPENAI, characters=(0, MAX_USER_CHARACTERS),
           see="serving/settings.md#admission",
           meaning="Whose request it is; admission by features serves requests of one user together."),
    Option("semantic", "BOOL", None, surfaces=CLIENT | EXTENSION | COMMAND,
           unset="as the setting `semantic_cache` says", see="serving/caching.md#the-semantic-cache",
           meaning="Accept a cached answer to a question of the same meaning, or never."),
    Option("logit_bias", "JSON", (), surfaces=CLIENT | OPENAI | VLLM, aliases=("embedding_bias_words",),
           allowed=f"an object of up to {MAX_BIASES:,} token ids, each -{MAX_BIAS:g} ... {MAX_BIAS:g}",
           meaning="Added to the logits of these token ids."),
    Option("guided_json", "JSON", "", surfaces=CLIENT | EXTENSION | COMMAND, max_bytes=MAX_GUIDE_BYTES,
           aliases=("response_format",), see="serving/requests.md#structured-output",
           meaning="Force an answer that follows this JSON schema."),
    Option("guided_regex", "STRING", "", surfaces=CLIENT | EXTENSION | COMMAND, max_bytes=MAX_GUIDE_BYTES,
           see="serving/requests.md#structured-output",
           meaning="Force an answer that matches this regular expression."),
    Option("guided_grammar", "STRING", "", surfaces=CLIENT | EXTENSION | COMMAND, max_bytes=MAX_GUIDE_BYTES,
           see="serving/requests.md#structured-output",
           meaning="Force an answer that follows this Lark grammar: its text, or open-autoglm."),
    Option("guide_after", "STRING", "", surfaces=CLIENT, choices=("", GUIDE_AFTER_THINKING),
           allowed="empty or thinking", see="gateway.md#thinking",
           meaning="With thinking, a guide holds after what the model thinks, not from the first token on."),
    Option("bad_words", "STRINGS", (), surfaces=CLIENT | EXTENSION | VLLM, max_items=MAX_BAD_WORDS,
           characters=(0, MAX_BAD_WORD_CHARACTERS),
           meaning="Texts that the answer never has, as they are tokenized at the start of a text or after a space."),
)}
# fmt: on


LENGTHS = ("max_tokens", "min_tokens")  # of an answer, whatever a checkpoint says: within what a slot has


def options_on(surfaces: Surface) -> tuple[Option, ...]:
    """On any of them, in the table's order; what belongs to the prompt comes last."""
    return tuple(option for option in (*OPTIONS.values(), *PROMPTS.values()) if surfaces & option.surfaces)


def known_aliases() -> dict[str, str]:
    """What other servers call an option -> its name here."""
    return {alias: option.name for option in OPTIONS.values() for alias in option.aliases}
