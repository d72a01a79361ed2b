"""The tokenizer and the chat templates as they lie in an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest

from .rendering.thinking import is_thinking_token
from .tool_format import visible_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "chat_template.jinja"
TOOL_TEMPLATE_NAME = "chat_template_tool_use.jinja"  # where there are tools, if the checkpoint has one for them
MAX_TEMPLATE_BYTES = 1 << 20


def read_template(path: Path) -> str | None:
    if not path.exists():
        return None
    if (size := path.stat().st_size) > MAX_TEMPLATE_BYTES:
        raise ArtifactError(f"{path} has {size} bytes; a chat template has at most {MAX_TEMPLATE_BYTES}")
    return path.read_text(encoding="utf-8")


def verify_texts(folder: Path, manifest: Manifest) -> None:
    """Check the content of the tokenizer and of the chat template, where there is one, before either is read. A
    template that somebody put there is refused: no digest counts it."""
    templates = [n for n in (TEMPLATE_NAME, TOOL_TEMPLATE_NAME) if n in manifest.files or (folder / n).exists()]
    manifest.verify_files(folder, [TOKENIZER_NAME, *templates], digests=True)


def load_tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_NAME
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    sources = [read_template(folder / name) for name in (TEMPLATE_NAME, TOOL_TEMPLATE_NAME)]
    return with_visible_calls(tokenizer, *(source for source in sources if source is not None))


def with_visible_calls(tokenizer: Tokenizer, *sources: str) -> Tokenizer:
    """The same ids of the same texts; but tokens that calls are made of, and that thinking stands between, are special
    no more, so that decoding keeps them. `sources`: of chat templates."""
    from tokenizers import Tokenizer

    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    visible = visible_tokens(tokenizer, sources) | set(filter(is_thinking_token, special))
    if not visible:
        return tokenizer
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in visible
    return Tokenizer.from_str(json.dumps(state))
