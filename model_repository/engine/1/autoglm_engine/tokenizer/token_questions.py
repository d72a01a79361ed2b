"""Questions about tokens, of which nothing is computed: `control` of the tokenizer model, JSON in and JSON out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoglm_engine.core import TokenIds
from autoglm_engine.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 1 << 17  # of a detokenize
MAX_CONTROL_BYTES = 2 << 20
_ID_BYTES = 40  # of a number and its place in a list
_FORMS = '{"tokenize": {option: true or false, ...}} or {"detokenize": [token id, ...]}'


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Which tokens the prompt beside it has. `add_special_tokens`: those that the tokenizer itself adds; None: as where
    it is answered, with text_input alone. `add_generation_prompt`, `continue_final_message`: as of a request that is
    answered; None where nothing was said."""

    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool = False


@dataclass(frozen=True, slots=True)
class Detokenize:
    """Which text these tokens are."""

    token_ids: Sequence[int]

    @property
    def num_bytes(self) -> int:
        """Held while it waits."""
        return _ID_BYTES * len(self.token_ids)


TokenQuestion = Tokenize | Detokenize


def read_token_question(raw: bytes) -> TokenQuestion:
    """Raises InvalidRequest."""
    if len(raw) > MAX_CONTROL_BYTES:
        raise InvalidRequest(f"control has {len(raw)} bytes; at most {MAX_CONTROL_BYTES} are read")
    try:
        asked = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("control is not JSON") from None
    match asked:
        case {"tokenize": dict(options), **rest} if not rest:
            return _tokenize(options)
        case {"detokenize": list(ids), **rest} if not rest:
            return _detokenize(ids)
    raise InvalidRequest(f"control of the tokenizer must be {_FORMS}")


def _tokenize(options: dict[str, Any]) -> Tokenize:
    names = Tokenize.__slots__
    for name, value in options.items():
        if name not in names:
            raise InvalidRequest(f"tokenize has the option {name!r:.80}; the options are {', '.join(names)}")
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} of tokenize is {value!r:.80}; it must be true or false")
    return Tokenize(**options)


def _detokenize(ids: list[Any]) -> Detokenize:
    if not 1 <= len(ids) <= MAX_TOKENS:
        raise InvalidRequest(f"detokenize has {len(ids)} tokens; 1 to {MAX_TOKENS} are taken")
    for index, token_id in enumerate(ids):
        if type(token_id) is not int:
            raise InvalidRequest(f"detokenize[{index}] is {token_id!r:.80}; it must be a token id")
    return Detokenize(ids)


class TokenAnswers:
    """What `tokenizer` says of tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._num_ids = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def tokens(self, token_ids: TokenIds, asked: Tokenize) -> dict[str, Any]:
        """`token_strs`, where they are asked for: each token as the vocabulary spells it."""
        if not asked.return_token_strs:
            return {}
        return {"token_strs": [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids.tolist()]}

    def text(self, asked: Detokenize) -> dict[str, Any]:
        """`text`, with special tokens as they are written. Raises InvalidRequest."""
        ids = np.asarray(asked.token_ids, dtype=object)
        for index in np.flatnonzero((ids < 0) | (ids >= self._num_ids))[:1].tolist():
            raise InvalidRequest(
                f"detokenize[{index}] is {ids[index]!s:.20}; the tokens of this model are 0 to {self._num_ids - 1}"
            )
        return {"text": self._tokenizer.decode(asked.token_ids, skip_special_tokens=False)}
