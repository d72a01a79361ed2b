"""Tokens that a folder names beside tokenizer.json: transformers (5.23, `TokenizersBackend.__init__`) matches them in a
text before it is split, whether tokenizer.json says so or not, and so do prompts here.

They are the tokens of `added_tokens_decoder`, or of added_tokens.json where that is missing, then the named special
tokens, then the lists of further ones. A name alone makes no new token: transformers invents an id for it, which the
model has never seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm_export.checkpoint.folder_files import read_json_if_there
from autoglm_export.errors import CheckpointError

from .special_tokens import CONFIG_NAME, EXTRA, named_in_files, token_files

if TYPE_CHECKING:
    from tokenizers import AddedToken

ADDED_NAME = "added_tokens.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def with_added_tokens(tokenizer: bytes, folder: Path, vocab_size: int) -> bytes:
    """`tokenizer`: a tokenizer.json, which is given back as it is where it has all of them. Raises CheckpointError."""
    from tokenizers import Tokenizer

    whole = Tokenizer.from_str(tokenizer.decode())
    known = {token.content: token for token in whole.get_added_tokens_decoder().values()}
    changed = False
    for token, listed_id in _tokens_of(folder, known):
        before, is_next = known.get(token.content), listed_id == whole.get_vocab_size() < vocab_size
        token.special = token.special or (before is not None and before.special)
        if (is_next or whole.token_to_id(token.content) is not None) and (not before or _told(before) != _told(token)):
            whole.add_tokens([token])
            changed = True
    return whole.to_str().encode() if changed else tokenizer


def _told(token: AddedToken) -> tuple[bool, ...]:
    return tuple(bool(getattr(token, flag)) for flag in _FLAGS)


def _tokens_of(folder: Path, known: Collection[str]) -> Iterator[tuple[AddedToken, int | None]]:
    """With the ids at which they are listed."""
    from tokenizers import AddedToken

    named = [text for text in named_in_files(folder).values() if text]
    seen = set(known)
    for token_id, text, flags in _listed(folder, named, known):
        seen.add(text)
        yield AddedToken(text, **{**flags, "special": flags.get("special", False) or text in named}), token_id
    for text in dict.fromkeys([*named, *_further(folder)]):
        if text not in seen:
            yield AddedToken(text, special=True), None


def _listed(folder: Path, named: Collection[str], known: Collection[str]) -> Iterator[tuple[int, str, dict[str, bool]]]:
    """By id, with their flags."""
    config = read_json_if_there(folder / CONFIG_NAME)
    if "added_tokens_decoder" not in config:
        old = read_json_if_there(folder / ADDED_NAME)  # where tokenizer.json counts more
        for text, token_id in old.items():
            if not text or type(token_id) is not int:
                raise CheckpointError(f"{ADDED_NAME} gives {text!r:.40} the id {token_id!r:.40}; ids are whole numbers")
        for text in sorted(old.keys() - known, key=old.__getitem__):
            yield old[text], text, {"special": text in named, "normalized": text not in named}
        return
    decoder = config["added_tokens_decoder"]
    is_object = isinstance(decoder, dict) and all(token_id.isdecimal() for token_id in decoder)
    if not is_object or not all(_is_token(token) for token in decoder.values()):
        raise CheckpointError(
            f"{CONFIG_NAME} has the added_tokens_decoder {decoder!r:.60}; it must be an object of token ids, each with "
            "its content and flags"
        )
    for token_id, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        yield int(token_id), token["content"], {flag: token[flag] for flag in _FLAGS if flag in token}


def _is_token(token: Any) -> bool:
    flags = isinstance(token, dict) and all(isinstance(token.get(flag, False), bool) for flag in _FLAGS)
    return flags and isinstance(token.get("content"), str) and bool(token["content"])


def _further(folder: Path) -> Iterator[str]:
    for config in token_files(folder).values():
        for entries in (config.get(key) for key in EXTRA):
            for entry in entries if isinstance(entries, list) else ():
                text = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(text, str) and text:
                    yield text
