"""What the inputs of other backends' clients mean in options of ours (`foreign_inputs` has their list).

Where an option is also given under its own name, the two must agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from autoglm_engine.errors import InvalidRequest

from .asked_options import AskedOptions, shown
from .foreign_inputs import FOREIGN_INPUTS, ForeignInput, Meaning
from .parsing import decode_utf8
from .sampling_json import NAME as SAMPLING_PARAMETERS
from .sampling_json import options_of, read_object

EncodeWord = Callable[[str], list[int]]  # a text -> its token ids, without special tokens
_SEED_BITS = 2**63 - 1  # a seed of ours is not negative and has 63 bits
_GUIDES = {"json_schema": "guided_json", "regex": "guided_regex"}


class ForeignOptions:
    """`eos_token_ids`: where this model's answers end."""

    def __init__(self, eos_token_ids: Collection[int], encode: EncodeWord) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._encode = encode

    def translate(
        self, foreign: Mapping[str, Any], values: Mapping[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """`values`, which were given under their own names, and what `foreign` inputs and vLLM's sampling parameters
        add to them. Raises InvalidRequest."""
        asked = AskedOptions(values)
        self._take_sampling(asked, foreign.get(SAMPLING_PARAMETERS), parameters or {})
        for name, value in foreign.items():
            self._take(asked, FOREIGN_INPUTS[name], value)
        self._take_guide(asked, foreign)
        self._take_biases(asked, foreign)
        return asked.values

    def _take(self, asked: AskedOptions, foreign: ForeignInput, value: Any) -> None:
        if foreign.meaning is Meaning.RENAMED:
            # TensorRT-LLM's own examples send an empty word for none.
            asked.put(foreign.option, [word for word in value if word] if foreign.is_list else value, foreign.name)
        elif foreign.meaning is Meaning.SEED:
            asked.put("seed", value & _SEED_BITS, foreign.name)
        elif foreign.meaning is Meaning.LOGPROBS and value:
            asked.at_least("logprobs", 1, foreign.name)
        elif foreign.meaning is Meaning.ONLY and value != foreign.value:
            raise InvalidRequest(
                f"{foreign.name} is {shown(value)}; it must be {shown(foreign.value)}, since {foreign.reason}"
            )
        elif foreign.name == "end_id":
            self._take_end(asked, value)

    def _take_end(self, asked: AskedOptions, end_id: int) -> None:
        """TensorRT-LLM's: the token that ends an answer; -1: none does."""
        if end_id == -1:
            asked.put("ignore_eos", True, "end_id", said=end_id)
        elif end_id not in self._eos_token_ids:
            raise InvalidRequest(f"end_id is {end_id}; {self._ends()}, or end_id -1 for none")

    def _take_sampling(self, asked: AskedOptions, raw: bytes | None, parameters: Mapping[str, Any]) -> None:
        given = parameters if raw is None else read_object(raw)  # vLLM's backend looks at one of the two as well
        for option, value in options_of(given):
            name = f"{SAMPLING_PARAMETERS}.{option}"
            if option == "stop_token_ids":
                self._check_stop_tokens(value)
            else:
                asked.put(option, value, name)

    def _check_stop_tokens(self, token_ids: Any) -> None:
        is_list = isinstance(token_ids, list)
        if not is_list or not all(isinstance(i, int) and i in self._eos_token_ids for i in token_ids):
            raise InvalidRequest(f"{SAMPLING_PARAMETERS}.stop_token_ids is {json.dumps(token_ids):.40}; {self._ends()}")

    def _ends(self) -> str:
        ids = ", ".join(str(token_id) for token_id in sorted(self._eos_token_ids))
        return f"this model's answers end with token {ids}" if ids else "this model has no token that ends an answer"

    def _take_guide(self, asked: AskedOptions, foreign: Mapping[str, Any]) -> None:
        kind, guide = foreign.get("guided_decoding_guide_type"), foreign.get("guided_decoding_guide")
        if kind is None and guide is None:
            return
        kind = None if kind is None else decode_utf8(kind, "guided_decoding_guide_type")
        if kind == "json":
            asked.put("guided_json", b"true", "guided_decoding_guide_type", said=kind)
        elif kind in _GUIDES and guide is not None:
            asked.put(_GUIDES[kind], guide, "guided_decoding_guide")
        else:
            beside = "without a guided_decoding_guide" if guide is None else "with a guided_decoding_guide"
            raise InvalidRequest(
                f"guided_decoding_guide_type is {'missing' if kind is None else shown(kind)} {beside}; it "
                "must be json, or json_schema or regex with one"
            )

    def _take_biases(self, asked: AskedOptions, foreign: Mapping[str, Any]) -> None:
        """Each token of a word gets the word's weight, as in TensorRT-LLM."""
        words, weights = foreign.get("embedding_bias_words"), foreign.get("embedding_bias_weights")
        if words is None and weights is None:
            return
        if words is None or weights is None or len(words) != len(weights):
            counts = [len(given or ()) for given in (words, weights)]
            raise InvalidRequest(
                f"embedding_bias_words has {counts[0]} values and embedding_bias_weights {counts[1]}; each "
                "word needs one weight"
            )
        biases: dict[str, float] = {}
        for word, weight in zip(words, weights, strict=True):
            for token_id in self._encode(decode_utf8(word, "embedding_bias_words")):
                biases[str(token_id)] = biases.get(str(token_id), 0.0) + float(weight)
        asked.put("logit_bias", json.dumps(biases).encode(), "embedding_bias_words")
