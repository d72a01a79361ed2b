"""The chat templates of a Hugging Face folder: the default one, and one for conversations with tools.

As transformers 5.23 reads them. Of a model that reads text alone (`PreTrainedTokenizerBase.from_pretrained`,
`get_chat_template`) files go before what tokenizer_config.json says; of one that takes images
(`ProcessorMixin.get_processor_dict`) what its processor says goes before both. Of several templates `tool_use` is taken
where tools are given, else `default`. Others can only be asked for by name, which no request does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm_export.checkpoint.folder_files import read_json_if_there, read_text
from autoglm_export.errors import CheckpointError

from .end_tokens import Metadata

FILE_NAME = "chat_template.jinja"
FOLDER_NAME = "additional_chat_templates"
_OF_PROCESSORS = ("processor_config.json", "chat_template.json")
_OF_TOKENIZERS = (FOLDER_NAME, "tokenizer_config.json")
DEFAULT, FOR_TOOLS = "default", "tool_use"


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """Jinja sources. `for_tools`: where it is another one."""

    default: str | None = None
    for_tools: str | None = None


def read_chat_templates(folder: Path, *, takes_images: bool) -> ChatTemplates:
    """Raises CheckpointError, naming the file, for several templates of which none is the default."""
    for name in (*_OF_PROCESSORS, *_OF_TOKENIZERS) if takes_images else (*_OF_TOKENIZERS, *_OF_PROCESSORS):
        found = _of_files(folder) if name == FOLDER_NAME else _of_config(read_json_if_there(folder / name), name)
        if found:
            return _chosen(found, name)
    return ChatTemplates()


def gguf_chat_templates(metadata: Metadata) -> ChatTemplates:
    """Of a GGUF file, whose keys llama.cpp reads so. What they hold is checked with the rest of the checkpoint."""
    default, for_tools = (metadata.get(f"tokenizer.chat_template{name}") for name in ("", f".{FOR_TOOLS}"))
    if default is None and for_tools is not None:
        raise CheckpointError(f"the GGUF file has tokenizer.chat_template.{FOR_TOOLS} and no tokenizer.chat_template")
    return ChatTemplates(default, None if for_tools == default else for_tools)


def _of_files(folder: Path) -> dict[str, str]:
    found = {path.stem: read_text(path) for path in sorted((folder / FOLDER_NAME).glob("*.jinja"))}
    if (folder / FILE_NAME).exists():
        found[DEFAULT] = read_text(folder / FILE_NAME)
    return found


def _of_config(config: Mapping[str, Any], file: str) -> dict[str, str]:
    """Of one text, of a list of named texts, or of an object of them."""
    match config.get("chat_template"):
        case None:
            return {}
        case str(text):
            return {DEFAULT: text}
        case list(entries) if all(map(_is_named, entries)):
            return {entry["name"]: entry["template"] for entry in entries}
        case dict(named) if all(isinstance(text, str) for text in named.values()):
            return named
        case other:
            raise CheckpointError(
                f"{file} has the chat_template {other!r:.60}; it must be a text, or a list of {{name, template}}"
            )


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def _chosen(found: Mapping[str, str], where: str) -> ChatTemplates:
    if DEFAULT not in found:
        raise CheckpointError(f"{where} has the chat templates {', '.join(sorted(found))}, and none is named {DEFAULT}")
    for_tools = found.get(FOR_TOOLS)
    return ChatTemplates(found[DEFAULT], None if for_tools == found[DEFAULT] else for_tools)
