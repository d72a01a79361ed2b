"""Where answers end.

A Hugging Face folder says it in generation_config.json or config.json. Its tokenizer has an end-of-sequence token, too,
at which vLLM ends as well (`SamplingParams.update_from_generation_config`). A GGUF file says it in three keys, often
not in all that apply: llama.cpp also ends at tokens whose text it knows.

Source of the texts and of the rules: `llama_vocab::impl::load` in llama.cpp's src/llama-vocab.cpp, commit 00ad355.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol

from autoglm_export.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KNOWN_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    }
)
# Of code that is filled in: what lies behind them is no answer. A key names each; else it is the first of its texts.
FILLED_IN = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# In these vocabularies a message of an answer ends at <|end|>, and the answer goes on.
_ENDS_MESSAGES_ONLY = "<|end|>"
_OF_WHOLE_ANSWERS = (frozenset({"<|return|>", "<|flush|>"}), frozenset({"<|call|>", "<|calls|>"}))


class Metadata(Protocol):
    def get(self, key: str, default: Any = None) -> Any: ...


def check_token_id(name: str, token_id: Any, vocab_size: int) -> None:
    """Raises CheckpointError for what has no row of logits."""
    if type(token_id) is not int or not 0 <= token_id < vocab_size:
        raise CheckpointError(f"{name} is {token_id!r:.40}; the model's ids are 0 ... {vocab_size - 1}")


def folder_end_tokens(
    vocab_size: int, tokenizer: Tokenizer, named: Mapping[str, str], *configs: Mapping[str, Any]
) -> tuple[int, ...]:
    """Of a Hugging Face folder: the first config's `eos_token_id` that is given, one id or several, then the token that
    `named` calls `eos_token`, if `tokenizer` has it. Raises CheckpointError where there is none."""
    found: Any = next((c["eos_token_id"] for c in configs if c.get("eos_token_id") is not None), [])
    ids = tuple(found) if isinstance(found, list) else (found,)
    for token_id in ids:
        check_token_id("eos_token_id", token_id, vocab_size)
    text = named.get("eos_token")
    own = None if text is None else tokenizer.token_to_id(text)
    if own is not None:
        ids = tuple(dict.fromkeys((*ids, own)))
    if not ids:
        raise CheckpointError(
            "neither generation_config.json nor config.json has an eos_token_id, and the tokenizer has no eos_token: "
            "no answer would end"
        )
    return ids


def unmet_ends(template: str, tokenizer: Tokenizer, ends: Collection[int]) -> tuple[str, ...]:
    """Known end tokens that a folder's chat template writes and no answer ends at, since none of its files says so."""
    ids = {text: tokenizer.token_to_id(text) for text in sorted(KNOWN_ENDS)}
    there = {text for text, token_id in ids.items() if token_id is not None}
    known = there - {_ENDS_MESSAGES_ONLY} if _ends_whole_answers(there) else there
    return tuple(text for text in sorted(known) if text in template and ids[text] not in ends)


def gguf_end_tokens(metadata: Metadata, vocab_size: int) -> tuple[int, ...]:
    """The end of sequence, of a turn and of a message; then whatever the vocabulary has that llama.cpp ends at. Raises
    CheckpointError where there is none, or a key names no token."""
    named = [_id_of(metadata, name, vocab_size) for name in ("eos", "eot", "eom")]
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    known = _known_ends(metadata, {token: index for index, token in enumerate(tokens)}, vocab_size)
    if found := tuple(dict.fromkeys([*(token_id for token_id in named if token_id is not None), *sorted(known)])):
        return _of_answers(found, tokens)
    raise CheckpointError(
        "the GGUF file has no tokenizer.ggml.eos_token_id and no known end token: no answer would end"
    )


def _id_of(metadata: Metadata, name: str, vocab_size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if (token_id := metadata.get(key)) is None:
        return None
    check_token_id(key, token_id, vocab_size)
    return int(token_id)


def _known_ends(metadata: Metadata, vocabulary: Mapping[str, int], vocab_size: int) -> Iterator[int]:
    yield from (vocabulary[text] for text in KNOWN_ENDS & vocabulary.keys())
    for name, texts in FILLED_IN.items():
        given = _id_of(metadata, name, vocab_size)
        by_text = next((vocabulary[text] for text in texts if text in vocabulary), None)
        if (token_id := by_text if given is None else given) is not None:
            yield token_id


def _ends_whole_answers(texts: AbstractSet[str]) -> bool:
    return all(texts & either for either in _OF_WHOLE_ANSWERS)


def _of_answers(found: tuple[int, ...], tokens: Sequence[str]) -> tuple[int, ...]:
    texts = {tokens[token_id]: token_id for token_id in found if token_id < len(tokens)}
    if not _ends_whole_answers(texts.keys()):
        return found
    return tuple(token_id for token_id in found if token_id != texts.get(_ENDS_MESSAGES_ONLY))
