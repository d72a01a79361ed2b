"""Options whose values are texts with an inside: biases of logits, and the guides of structured output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from autoglm_engine.core import GUIDES, SamplingOptions
from autoglm_engine.errors import InvalidRequest

MAX_BIASES = 1024  # tokens
MAX_BIAS = 100.0  # either way
MAX_GUIDE_BYTES = 65_536
_MAX_DIGITS = 12  # of a token id

Biases = tuple[tuple[int, float], ...]


def decode_utf8(raw: bytes, name: str) -> str:
    """UTF-8 to text. Raises InvalidRequest that names the first bad byte."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8: byte 0x{raw[error.start]:02x} at {error.start}") from None


def read_bias(raw: bytes) -> Biases:
    """A JSON object: token id -> bias. Raises InvalidRequest."""
    try:
        found = json.loads(decode_utf8(raw, "logit_bias"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"logit_bias is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest('logit_bias must be a JSON object of token ids and biases, such as {"42": -100}')
    return tuple(sorted(_bias(token, bias) for token, bias in found.items()))


def check_bias(biases: Biases, vocab_size: int) -> None:
    """Raises InvalidRequest."""
    if len(biases) > MAX_BIASES:
        raise InvalidRequest(f"logit_bias has {len(biases)} tokens; at most {MAX_BIASES} are allowed")
    if len({token_id for token_id, _ in biases}) < len(biases):
        raise InvalidRequest("logit_bias names a token twice")
    for token_id, bias in biases:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"logit_bias names token {token_id}; tokens are between 0 and {vocab_size - 1}")
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequest(f"logit_bias of token {token_id} is {bias:g}; it must be between -100 and 100")


def read_guided_json(raw: bytes) -> str:
    """A JSON schema, as compact as JSON gets: equal ones are compiled once. Raises InvalidRequest."""
    _check_size("guided_json", len(raw))
    try:
        schema = json.loads(decode_utf8(raw, "guided_json"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"guided_json is not JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequest("guided_json must be a JSON schema: an object, or true")
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest("guided_json holds half of a UTF-16 surrogate pair, which is no character")
    return text


def check_guides(sampling: SamplingOptions) -> None:
    """Raises InvalidRequest."""
    if not sampling.is_guided:
        return
    texts = {name: getattr(sampling, name) for name in GUIDES}
    given = [name for name, text in texts.items() if text]
    if len(given) > 1:
        raise InvalidRequest(f"{_listed(given)} are set; a request has one of them")
    _check_size(given[0], len(texts[given[0]].encode()))
    if sampling.ignore_eos:
        raise InvalidRequest(f"ignore_eos is true beside {given[0]}: an answer ends where its guide does")
    if sampling.min_tokens:
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens} beside {given[0]}: an answer ends where its guide does"
        )


def _bias(token: str, bias: Any) -> tuple[int, float]:
    if not token.isascii() or not token.isdigit() or len(token) > _MAX_DIGITS:
        raise InvalidRequest(f"logit_bias names {token!r:.40}; it must be a token id, such as 42")
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not -MAX_BIAS <= bias <= MAX_BIAS:
        raise InvalidRequest(
            f"logit_bias of token {token:.20} is {bias!r:.40}; it must be a number between -100 and 100"
        )
    return int(token), float(bias)


def _check_size(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_GUIDE_BYTES:
        raise InvalidRequest(f"{name} has {num_bytes} bytes; at most {MAX_GUIDE_BYTES} are allowed")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
