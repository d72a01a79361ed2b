"""The rules of options: values as a request has them, checked against the table, into what the engine computes with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_engine.core import DEFAULT_PRIORITY, GUIDES, CacheUse, SamplingOptions
from autoglm_engine.errors import ArtifactError, InvalidRequest
from autoglm_engine.manifest import Manifest

from .bad_words import Words, check_words
from .parsing import check_bias, check_guides, decode_utf8, read_bias, read_guided_json
from .table import (
    DEFAULT_MAX_TOKENS,
    GUIDE_AFTER_THINKING,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_TENANT_CHARACTERS,
    MAX_USER_CHARACTERS,
    OPTIONS,
    Kind,
    Option,
)

_TEXT = (tuple, str)
_TYPES: Mapping[Kind, tuple[type, ...]] = {
    "INT32": (int,),
    "INT64": (int,),
    "FP32": (int, float),
    "BOOL": (bool,),
    "STRING": _TEXT,
    "STRINGS": _TEXT,
    "JSON": _TEXT,
}
_SAMPLING = frozenset(field.name for field in dataclasses.fields(SamplingOptions))
_OTHERS = tuple(name for name in OPTIONS if name not in _SAMPLING)


@dataclass(frozen=True, slots=True)
class Checked:
    """A request's options, each inside its range."""

    sampling: SamplingOptions
    stream: bool
    deadline_ms: int | None
    heartbeat_ms: int | None = None
    priority: int = DEFAULT_PRIORITY
    prompt_lookup: int | None = None
    cache: CacheUse = CacheUse.DEFAULT
    tenant: str = ""
    user: str = ""
    semantic: bool | None = None


@dataclass(frozen=True, slots=True)
class OptionRules:
    """The table with one model's limits and defaults filled in."""

    max_length: int
    vocab_size: int
    defaults: Mapping[str, Any]
    stop: tuple[str, ...] = ()  # that end every answer, beside a request's own
    banned: Words = ()  # that no answer holds, beside a request's own

    @classmethod
    def of(cls, manifest: Manifest) -> OptionRules:
        """Raises ArtifactError when the checkpoint's defaults name no such option or leave its range."""
        rules = cls(
            manifest.max_length,
            manifest.vocab_size,
            dict(manifest.generation_defaults),
            manifest.stop_strings,
            manifest.banned_tokens,
        )
        try:
            for name, value in rules.defaults.items():
                if name not in OPTIONS or not OPTIONS[name].from_model:
                    raise InvalidRequest(f"{name} is not an option that a checkpoint sets")
                rules.check_range(OPTIONS[name], value, max_tokens=manifest.max_length)
        except InvalidRequest as error:
            raise ArtifactError(f"the artifact's generation defaults are wrong: {error}") from None
        return rules

    def check(self, values: Mapping[str, Any], *, prompt_length: int) -> Checked:
        """`values`: what the caller set, as Python values; `stop` as a list of bytes, `user` as bytes, `bad_words` as
        token ids (`bad_words.word_tokens`). Raises InvalidRequest."""
        room = max(1, self.max_length - prompt_length)
        chosen = {name: self._value(option, values, room) for name, option in OPTIONS.items()}
        if "min_tokens" not in values:  # a model's own, which a guide's end goes before
            chosen["min_tokens"] = (
                0 if any(map(values.get, GUIDES)) else min(chosen["min_tokens"], chosen["max_tokens"])
            )
        for name in values:
            self.check_range(OPTIONS[name], chosen[name], max_tokens=chosen["max_tokens"])
        others = {name: chosen.pop(name) for name in _OTHERS}
        sampling = SamplingOptions(**chosen)
        self._check_texts(sampling)
        return Checked(self._with_models(sampling), **others)

    def _with_models(self, sampling: SamplingOptions) -> SamplingOptions:
        """What the model's maker says of every answer. An answer that goes on behind end tokens goes on behind its stop
        strings, too."""
        if not self.stop and not self.banned:
            return sampling
        stop = sampling.stop if sampling.ignore_eos else tuple(dict.fromkeys((*sampling.stop, *self.stop)))
        bad_words = tuple(dict.fromkeys((*sampling.bad_words, *self.banned)))
        return dataclasses.replace(sampling, stop=stop, bad_words=bad_words)

    def recheck(self, sampling: SamplingOptions) -> None:
        """For the engine, whose tensors anybody can send. Raises InvalidRequest for a wrong type or range."""
        for field in dataclasses.fields(sampling):
            option, value = OPTIONS[field.name], getattr(sampling, field.name)
            if value is None and option.default is None:
                continue
            if not isinstance(value, _TYPES[option.kind]) or (isinstance(value, bool) != (option.kind == "BOOL")):
                raise InvalidRequest(f"{option.name} is {value!r:.40}, which is not {option.dtype}")
            self.check_range(option, value, max_tokens=sampling.max_tokens)
        _check_stop_strings(sampling.stop)
        self._check_texts(sampling)

    def recheck_prompt_lookup(self, value: int | None) -> None:
        """As `recheck`."""
        if value is not None:
            self.check_range(OPTIONS["prompt_lookup"], value, max_tokens=0)

    def _check_texts(self, sampling: SamplingOptions) -> None:
        check_guides(sampling)
        check_bias(sampling.logit_bias, self.vocab_size)
        if sampling.bad_words:
            own = frozenset(self.banned)
            check_words(tuple(word for word in sampling.bad_words if word not in own), self.vocab_size)

    def _value(self, option: Option, values: Mapping[str, Any], room: int) -> Any:
        if option.name in values:
            read = _READERS.get(option.name)
            return read(values[option.name]) if read else values[option.name]
        if option.name == "max_tokens":
            return min(self.defaults.get(option.name, DEFAULT_MAX_TOKENS), room)
        return self.defaults.get(option.name, option.default) if option.from_model else option.default

    def check_range(self, option: Option, value: Any, *, max_tokens: int) -> None:
        if option.low is None or option.high is None:
            return
        low = float(option.low)
        names = {"max_length": self.max_length, "vocab_size": self.vocab_size, "max_tokens": max_tokens}
        high = names[option.high] if isinstance(option.high, str) else option.high
        inside = (low < value if option.low_open else low <= value) and value <= high
        if not inside or not math.isfinite(value):
            raise InvalidRequest(f"{option.name} is {_shown(value)}; {_range(option, high)}")


def _range(option: Option, high: float) -> str:
    named = f" ({option.high})" if isinstance(option.high, str) else ""
    if option.low_open:
        return f"it must be above {option.low:g} and at most {high:g}{named}"
    return f"it must be between {option.low} and {high}{named}"


def _shown(value: float) -> str:
    return f"{value!s:.40}" if isinstance(value, int) else f"{value:g}"


def _stop_strings(raw: list[bytes]) -> tuple[str, ...]:
    if len(raw) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop has {len(raw)} strings; at most {MAX_STOP_STRINGS} are allowed")
    strings = tuple(decode_utf8(item, f"stop[{index}]") for index, item in enumerate(raw))
    _check_stop_strings(strings)
    return strings


def _cache_use(raw: bytes) -> CacheUse:
    text = decode_utf8(raw, "cache")
    try:
        return CacheUse(text)
    except ValueError:
        allowed = ", ".join(use.value for use in CacheUse)
        raise InvalidRequest(f"cache is {text!r:.40}; allowed are {allowed}") from None


def read_tenant(raw: bytes) -> str:
    """Raises InvalidRequest."""
    text = decode_utf8(raw, "tenant")
    check_tenant(text)
    return text


def check_tenant(tenant: str) -> None:
    """Raises InvalidRequest."""
    if len(tenant) > MAX_TENANT_CHARACTERS:
        raise InvalidRequest(f"tenant has {len(tenant)} characters; at most {MAX_TENANT_CHARACTERS} are allowed")


def _guide_after(raw: bytes) -> str:
    text = decode_utf8(raw, "guide_after")
    if text not in ("", GUIDE_AFTER_THINKING):
        raise InvalidRequest(f"guide_after is {text!r:.40}; it must be {GUIDE_AFTER_THINKING}, or empty")
    return text


def _check_stop_strings(strings: tuple[str, ...]) -> None:
    for index, string in enumerate(strings):
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest(f"stop[{index}] has {len(string)} characters; 1 to {MAX_STOP_CHARACTERS} are allowed")


def _user(raw: bytes) -> str:
    user = decode_utf8(raw, "user")
    if len(user) > MAX_USER_CHARACTERS:
        raise InvalidRequest(f"user has {len(user)} characters; at most {MAX_USER_CHARACTERS} are allowed")
    return user


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "top_k": lambda value: 0 if value == -1 else value,  # vLLM's way to say that it is off
    "stop": _stop_strings,
    "priority": lambda level: level or DEFAULT_PRIORITY,  # 0 is Triton's word for it
    "cache": _cache_use,
    "tenant": read_tenant,
    "user": _user,
    "logit_bias": read_bias,
    "guided_json": read_guided_json,
    "guided_regex": lambda raw: decode_utf8(raw, "guided_regex"),
    "guided_grammar": lambda raw: decode_utf8(raw, "guided_grammar"),
    "guide_after": _guide_after,
}
