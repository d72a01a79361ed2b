"""generation_config.json -> what answers are like where a request says nothing, and what no answer may hold.

As in transformers, `do_sample` (false unless it is given) decides: without it the answer is greedy, temperature 0.
Keys: transformers 5.23, `GenerationConfig`. What changes answers and is not followed here is named, never dropped in
silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoglm_engine.options.bad_words import Words
from autoglm_engine.options.table import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, OPTIONS, Option

from autoglm_export.errors import CheckpointError

from .end_tokens import Metadata, check_token_id

NAME = "generation_config.json"
_MAX_WHOLE = 2**31 - 1
_MAX_BANNED = 1 << 10  # sequences of tokens: each request carries them
_MAX_BANNED_LENGTH = 1 << 8  # tokens of one
_LIBRARYS_MAX_LENGTH = 20  # older versions wrote their default down
_NOTHING = (None, 0)
# Keys that change answers, and the values at which they do not.
_UNFOLLOWED: dict[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": (None, []),
    "constraints": (None, []),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": _NOTHING,
    "encoder_repetition_penalty": (None, 1),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "max_time": (None,),
    "min_length": _NOTHING,
    "no_repeat_ngram_size": _NOTHING,
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": _NOTHING,
    "sequence_bias": (None, [], {}),
    "token_healing": (None, False),
    "watermarking_config": (None,),
}
_UNFOLLOWED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "epsilon_cutoff": _NOTHING,
    "eta_cutoff": _NOTHING,
    "top_h": (None,),
    "typical_p": (None, 1),
}
# Followed where generation_config.json has them.
_NOT_OF_CONFIG: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "do_sample": (None, False),
    "max_new_tokens": (None,),
    "min_new_tokens": _NOTHING,
    "repetition_penalty": (None, 1),
    "stop_strings": (None, []),
    "suppress_tokens": (None, []),
}


@dataclass(frozen=True, slots=True)
class Generation:
    """`defaults`: option -> value. `stop`: texts that end every answer. `banned`: token sequences that no answer holds.
    `unfollowed`: keys that change answers elsewhere and not here, each with its value. `unmet_ends`: tokens that look
    like the end of an answer and are none."""

    defaults: dict[str, Any]
    stop: tuple[str, ...] = ()
    banned: Words = ()
    unfollowed: tuple[str, ...] = ()
    unmet_ends: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """About what may surprise."""
        asked = f"the checkpoint asks for what is not followed here: {', '.join(self.unfollowed)}"
        ends = f"its chat template writes {', '.join(self.unmet_ends)}, where no answer ends: no eos_token names it"
        told = [asked] * bool(self.unfollowed) + [ends] * bool(self.unmet_ends)
        return "; ".join(told) or None


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float
    low_included: bool = True

    def __contains__(self, value: float) -> bool:
        return (self.low <= value if self.low_included else self.low < value) and value <= self.high

    def __str__(self) -> str:
        return f"{'' if self.low_included else 'above '}{self.low:g} ... {self.high:g}"


def read_generation(
    raw: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    max_position: int,
    eos_token_ids: Sequence[int],
    unmet_ends: tuple[str, ...] = (),
) -> Generation:
    """`raw`: generation_config.json; `config`: config.json, whose own keys of generation transformers 5 does not read.
    Raises CheckpointError, naming the key."""
    return Generation(
        generation_defaults(raw, vocab_size),
        _stop_strings(raw.get("stop_strings")),
        _banned_tokens(raw, vocab_size, eos_token_ids),
        tuple(_unfollowed(raw, max_position) if raw else _left_in_config(config, max_position)),
        unmet_ends,
    )


def gguf_generation(metadata: Metadata, vocab_size: int) -> Generation:
    """Of a GGUF file, which tells no more than tokens that llama.cpp suppresses; ids that are none, it drops."""
    key = "tokenizer.ggml.suppress_tokens"
    ids = metadata.get(key) or []
    if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
        raise CheckpointError(f"{key} is {ids!r:.60}; it must be a list of token ids")
    banned = tuple((token_id,) for token_id in dict.fromkeys(ids) if 0 <= token_id < vocab_size)
    if len(banned) > _MAX_BANNED:
        raise CheckpointError(f"{key} bans {len(banned):,} tokens; at most {_MAX_BANNED:,} are allowed")
    return Generation(generation_defaults({}, vocab_size), banned=banned)


def generation_defaults(generation: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Option name -> default, in the ranges of the table of options."""
    options = {option.name: option for option in OPTIONS.values() if option.from_model}
    keys = {name: option.model_key or name for name, option in options.items()}
    defaults = {name: generation[key] for name, key in keys.items() if generation.get(key) is not None}
    if not generation.get("do_sample"):
        defaults["temperature"] = 0.0
    defaults.setdefault("temperature", 1.0)
    for name, value in defaults.items():
        allowed, is_whole = _range(options[name], vocab_size), options[name].kind == "INT32"
        wrong_kind = isinstance(value, bool) or not isinstance(value, int | float) or (is_whole and value % 1)
        if wrong_kind or value not in allowed:
            whole = "whole numbers of " if is_whole else ""
            raise CheckpointError(f"{NAME} has {keys[name]} {value!r:.60}; allowed is {whole}{allowed}")
    return {name: int(value) if options[name].kind == "INT32" else float(value) for name, value in defaults.items()}


def _range(option: Option, vocab_size: int) -> Range:
    """A request's -1 of `top_k` is no value of a checkpoint. How long a slot is, nobody knows yet."""
    assert isinstance(option.low, (int, float)), f"{option.name} has no range"
    named = {"vocab_size": vocab_size, "max_length": _MAX_WHOLE, "max_tokens": _MAX_WHOLE}
    high = named[option.high] if isinstance(option.high, str) else option.high
    assert high is not None, f"{option.name} has no range"
    return Range(max(0, option.low), high, low_included=not option.low_open)


def bos_token_id(vocab_size: int, *configs: Mapping[str, Any]) -> int | None:
    """The first config's that is given. None where none is, or it is negative, as some checkpoints say that they have
    none."""
    found = next((c["bos_token_id"] for c in configs if c.get("bos_token_id") is not None), None)
    if type(found) is not int or found < 0:
        return None
    if found >= vocab_size:
        raise CheckpointError(f"bos_token_id is {found}; the model's ids are 0 ... {vocab_size - 1}")
    return found


def _stop_strings(given: Any) -> tuple[str, ...]:
    """One text or several, in the range of the option `stop`."""
    texts = [given] if isinstance(given, str) else given or []
    is_list = isinstance(texts, list) and len(texts) <= MAX_STOP_STRINGS
    if not is_list or not all(isinstance(text, str) and 1 <= len(text) <= MAX_STOP_CHARACTERS for text in texts):
        raise CheckpointError(
            f"{NAME} has stop_strings {given!r:.60}; allowed are up to {MAX_STOP_STRINGS} texts of 1 to "
            f"{MAX_STOP_CHARACTERS} characters"
        )
    return tuple(dict.fromkeys(texts))


def _banned_tokens(raw: Mapping[str, Any], vocab_size: int, eos_token_ids: Sequence[int]) -> Words:
    """As in transformers a bad word that is an end token alone is none, and a suppressed end token is suppressed."""
    alone = [(token_id,) for token_id in _ids("suppress_tokens", raw.get("suppress_tokens") or [], vocab_size)]
    words = raw.get("bad_words_ids") or []
    if not isinstance(words, list):
        raise CheckpointError(f"{NAME} has bad_words_ids {words!r:.60}; it must be a list of lists of token ids")
    sequences = [_ids("bad_words_ids", word, vocab_size) for word in words]
    if not all(1 <= len(word) <= _MAX_BANNED_LENGTH for word in sequences):
        raise CheckpointError(f"{NAME} has bad_words_ids of other lengths than 1 ... {_MAX_BANNED_LENGTH} tokens")
    ends = {(token_id,) for token_id in eos_token_ids}
    found = tuple(dict.fromkeys([*alone, *(word for word in sequences if word not in ends)]))
    if len(found) > _MAX_BANNED:
        raise CheckpointError(f"{NAME} bans {len(found):,} sequences of tokens; at most {_MAX_BANNED:,} are allowed")
    return found


def _ids(name: str, given: Any, vocab_size: int) -> tuple[int, ...]:
    if not isinstance(given, list):
        raise CheckpointError(f"{NAME} has {name} {given!r:.60}; it must be a list of token ids")
    for token_id in given:
        check_token_id(f"{NAME}'s {name}", token_id, vocab_size)
    return tuple(given)


def _unfollowed(raw: Mapping[str, Any], max_position: int) -> Iterator[str]:
    neutral = _UNFOLLOWED | (_UNFOLLOWED_SAMPLING if raw.get("do_sample") else {})
    for name, values in sorted(neutral.items()):
        if raw.get(name) not in values:
            yield f"{name} {raw[name]!r:.40}"
    length = raw.get("max_length")
    if isinstance(length, int) and length != _LIBRARYS_MAX_LENGTH and length < max_position:
        yield f"max_length {length}"


def _left_in_config(config: Mapping[str, Any], max_position: int) -> Iterator[str]:
    """Where there is no generation_config.json, transformers 4 took these from config.json."""
    for said in _unfollowed({**config, "do_sample": True}, max_position):
        yield f"{said} of config.json"
    for name, values in _NOT_OF_CONFIG.items():
        if config.get(name) not in values:
            yield f"{name} {config[name]!r:.40} of config.json"
