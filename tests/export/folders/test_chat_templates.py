"""Chat templates and the special tokens that they name: a folder's prompts are transformers', byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from autoglm_cli import app
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer, verify_texts
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_export.checkpoint.generation.chat_templates import gguf_chat_templates, read_chat_templates
from autoglm_export.checkpoint.generation.special_tokens import gguf_special_tokens, special_tokens
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError
from autoglm_export.export import export
from typer.testing import CliRunner

from tests.export.test_gguf import tokenizer_metadata
from tests.support.engine.tool_templates import FORMS
from tests.support.export.plain_checkpoints import write_folder, write_gguf_file
from tests.support.export.tiny_models import edit_json

TURNS = "{% for m in messages %}<|user|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
ALL_NAMES = "".join(
    f"[{name}={{{{ {name} }}}}]"
    for name in (
        *("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"),
        *("image_token", "boi_token", "audio_token", "additional_special_tokens", "chat_token_id"),
    )
)
NAMES = f"{{{{ bos_token }}}}{TURNS}{ALL_NAMES}{{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"
CALLS = "{% for m in messages %}<|user|>{{ m['content'] }}{{ m.tool_calls }}{% endfor %}<|assistant|>"
WITH_TOOLS = "{% for t in tools %}[{{ t['function']['name'] }}]{% endfor %}" + CALLS
MESSAGES = [{"role": "user", "content": "ab"}]
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "now", "description": "x", "parameters": {}}}]


def added(text: str) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": text, "lstrip": False, "rstrip": False, "normalized": False}


# tokenizer_config.json, special_tokens_map.json
SPECIAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "texts": ({"bos_token": "<|user|>", "eos_token": "<|end|>", "pad_token": "<|end|>", "unk_token": "<|user|>"}, {}),
    "objects": ({"eos_token": added("<|end|>"), "bos_token": added("<|user|>")}, {}),
    "nulls": ({"bos_token": None, "eos_token": "<|end|>", "unk_token": None, "pad_token": None}, {}),
    "others": ({"eos_token": "<|end|>", "image_token": "<|user|>", "boi_token": added("<|assistant|>")}, {}),
    "more by name": ({"extra_special_tokens": {"image_token": "<|user|>", "audio_token": "<|assistant|>"}}, {}),
    "more without": ({"additional_special_tokens": ["<|user|>"], "eos_token": "<|end|>"}, {}),
    "the old file": ({"eos_token": "<|user|>", "bos_token": "<|user|>"}, {"eos_token": "<|end|>", "cls_token": "a"}),
    "objects there": ({}, {"eos_token": {"content": "<|end|>", "lstrip": False, "rstrip": False, "normalized": False}}),
    "its list": ({}, {"additional_special_tokens": ["<|user|>"], "eos_token": "<|end|>"}),
    "not beside a decoder": (
        {"eos_token": "<|user|>", "added_tokens_decoder": {"256": {"content": "<|end|>", "special": True}}},
        {"eos_token": "<|end|>"},
    ),
    "none": ({}, {}),
}
CLASSES = (None, "PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "LlamaTokenizer")
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_vl", "glm", "glm4", "glm4v")


def reference(folder: Path, family: str = "llama") -> Any:
    from transformers import AutoConfig, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, config=AutoConfig.for_model(family))


def expected(folder: Path, tools: Any = None) -> str:
    return str(reference(folder).apply_chat_template(MESSAGES, tools=tools, tokenize=False, add_generation_prompt=True))


@contextmanager
def template_of(folder: Path) -> Iterator[ChatTemplate]:
    checkpoint = open_checkpoint(folder)
    templates, special = checkpoint.templates, checkpoint.special_tokens
    assert templates.default is not None
    for_tools = templates.for_tools and ChatTemplate(templates.for_tools, special)
    template = ChatTemplate(templates.default, special, for_tools=for_tools or None)
    try:
        yield template
    finally:
        template.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each test writes its own tokenizer_config.json, special_tokens_map.json and templates over it."""
    return write_folder(tmp_path_factory.mktemp("templates") / "m")


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "m"
    copy.mkdir()
    for path in plain.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "chat_template.jinja").unlink()
    return copy


@pytest.mark.parametrize("case", SPECIAL)
def test_a_template_is_given_transformers_special_tokens(case: str, folder: Path) -> None:
    config, old_map = SPECIAL[case]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": NAMES}))
    if old_map:
        (folder / "special_tokens_map.json").write_text(json.dumps(old_map))
    with template_of(folder) as template:
        assert template.render(MESSAGES) == expected(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_file_says_the_class_says(family: str, folder: Path) -> None:
    tokenizer = (folder / "tokenizer.json").read_bytes()
    for name in CLASSES:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} if name else {}))
        assert special_tokens(folder, family, tokenizer) == reference(folder, family).special_tokens_map, name


def test_a_null_is_no_gap_that_a_class_fills(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": None, "eos_token": "<|end|>"}))
    found = special_tokens(folder, "qwen2", (folder / "tokenizer.json").read_bytes())
    assert found == {"eos_token": "<|end|>", "pad_token": "<|endoftext|>"}


@pytest.mark.parametrize("value", [7, ["<|end|>"], {"content": 7}])
def test_a_token_that_is_no_text_is_refused(value: Any, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": value}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json has pad_token .*; it must be a text"):
        open_checkpoint(folder)


# file -> what is written there; JSON where it is no text
LAYOUTS: dict[str, dict[str, Any]] = {
    "a file": {"chat_template.jinja": f"D{TURNS}"},
    "in the config": {"tokenizer_config.json": {"chat_template": f"D{TURNS}", "eos_token": "<|end|>"}},
    "a list": {
        "tokenizer_config.json": {
            "chat_template": [{"name": "default", "template": f"D{TURNS}"}, {"name": "tool_use", "template": "T"}]
        }
    },
    "a list with something else": {
        "tokenizer_config.json": {
            "chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": f"D{TURNS}"}]
        }
    },
    "an object": {"tokenizer_config.json": {"chat_template": {"default": f"D{TURNS}", "tool_use": f"T{WITH_TOOLS}"}}},
    "more files": {
        "chat_template.jinja": f"D{TURNS}",
        "additional_chat_templates/tool_use.jinja": f"T{WITH_TOOLS}",
        "additional_chat_templates/rag.jinja": "R",
    },
    "a file before the config": {
        "chat_template.jinja": f"D{TURNS}",
        "tokenizer_config.json": {
            "eos_token": "<|end|>",
            "chat_template": [{"name": "default", "template": "no"}, {"name": "tool_use", "template": "no"}],
        },
    },
    "a processor's beside the config's": {
        "chat_template.json": {"chat_template": "no"},
        "tokenizer_config.json": {"chat_template": f"D{TURNS}"},
    },
}


def write_layout(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_template_is_found_where_transformers_finds_it(case: str, folder: Path) -> None:
    write_layout(folder, LAYOUTS[case])
    with template_of(folder) as template:
        assert template.render(MESSAGES) == expected(folder)
        if "{% for t in tools" in json.dumps(LAYOUTS[case]):
            rendered = template.render(MESSAGES, TOOLS)
            assert rendered == expected(folder, TOOLS) and rendered.startswith("T[now]")


# files, takes images -> template, or what is wrong
PROCESSORS: dict[str, tuple[dict[str, Any], bool, str | None]] = {
    "of images": ({"chat_template.json": {"chat_template": "P"}}, True, "P"),
    "goes first there": (
        {"chat_template.json": {"chat_template": "P"}, "tokenizer_config.json": {"chat_template": "C"}},
        True,
        "P",
    ),
    "before a file": ({"chat_template.json": {"chat_template": "P"}, "chat_template.jinja": "F"}, True, "P"),
    "behind the processor's config": (
        {"chat_template.json": {"chat_template": "P"}, "processor_config.json": {"chat_template": "Q"}},
        True,
        "Q",
    ),
    "a file alone": ({"chat_template.jinja": "F", "processor_config.json": {}}, True, "F"),
    "a file of one of text": (
        {"chat_template.json": {"chat_template": "P"}, "chat_template.jinja": "F"},
        False,
        "F",
    ),
    "where nothing else is": ({"chat_template.json": {"chat_template": "P"}}, False, "P"),
    "one that says null": ({"chat_template.json": {"chat_template": None}}, True, None),
    "none": ({}, True, None),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_a_processors_template(case: str, folder: Path) -> None:
    files, takes_images, found = PROCESSORS[case]
    write_layout(folder, files)
    assert read_chat_templates(folder, takes_images=takes_images).default == found


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no default": (
        {"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "T"}]}},
        "tokenizer_config.json has the chat templates tool_use, and none is named default",
    ),
    "files without one": (
        {"additional_chat_templates/rag.jinja": "R", "tokenizer_config.json": {"chat_template": "D"}},
        "additional_chat_templates has the chat templates rag, and none is named default",
    ),
    "no templates": ({"tokenizer_config.json": {"chat_template": [{"name": "default"}]}}, "it must be a text, or a"),
    "a number": ({"chat_template.json": {"chat_template": 7}}, "chat_template.json has the chat_template 7; it must"),
    "no text": ({"tokenizer_config.json": {"chat_template": {"default": 7}}}, "it must be a text, or a list of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_templates_that_nobody_can_choose_of_are_refused(case: str, folder: Path) -> None:
    files, sentence = REFUSED[case]
    write_layout(folder, files)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert sentence in str(caught.value)


def test_a_gguf_file_names_tokens_and_a_template_for_tools(tmp_path: Path) -> None:
    metadata = tokenizer_metadata(bos_token_id=257, padding_token_id=258, unknown_token_id=2**31, mask_token_id=0)
    metadata |= {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T"}
    opened = open_checkpoint(write_gguf_file(tmp_path / "m.gguf", **metadata))
    first = metadata["tokenizer.ggml.tokens"][0]
    assert opened.special_tokens == {
        "bos_token": "<tool>",
        "eos_token": "<|end|>",
        "pad_token": "ab",
        "mask_token": first,
    }
    assert (opened.templates.default, opened.templates.for_tools) == ("D", "T")
    assert gguf_special_tokens({}) == {}
    with pytest.raises(CheckpointError, match=r"tokenizer\.chat_template\.tool_use and no tokenizer\.chat_template$"):
        gguf_chat_templates({"tokenizer.chat_template.tool_use": "T"})
    assert (
        gguf_chat_templates({"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "D"}).for_tools is None
    )


def test_an_artifact_carries_both_templates_and_the_names(folder: Path, tmp_path: Path) -> None:
    write_layout(folder, LAYOUTS["more files"] | {"tokenizer_config.json": SPECIAL["texts"][0]})
    out = tmp_path / "artifact"
    manifest = export(folder, out, runtime="onnx", precision="fp32", max_slots=1, max_length=16)
    assert manifest == Manifest.load(out) and manifest.special_tokens == SPECIAL["texts"][0]
    template = ChatTemplate.load(out, load_tokenizer(out), manifest)
    assert template is not None
    other = template.another()
    try:
        for each in (template, other):
            each.start()
            assert each.render(MESSAGES) == expected(folder) == "D<|user|>ab<|end|>"
            assert each.render(MESSAGES, TOOLS) == expected(folder, TOOLS)
    finally:
        template.close()
        other.close()
    _check_old(out)
    (out / "chat_template_tool_use.jinja").write_text("changed")
    with pytest.raises(ArtifactError, match=r"chat_template_tool_use\.jinja"):
        verify_texts(out, manifest)


def test_inspect_shows_how_the_model_calls(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(FORMS["function tags"])
    out = tmp_path / "artifact"
    export(folder, out, runtime="onnx", precision="fp32", max_slots=1, max_length=16)
    shown = CliRunner().invoke(app, ["inspect", str(out), "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["calls"] == (
        "<tool_call>\n<function=«name»>\n<parameter=«key»>\nVALUE\n</parameter>\n</function>\n</tool_call>"
    )


def _check_old(out: Path) -> None:
    """An artifact of an exporter that wrote ids alone names their tokens, as it did."""
    edit_json(out / "manifest.json", special_tokens=None, bos_token_id=257, eos_token_ids=[258, 256])
    old = ChatTemplate.load(out, load_tokenizer(out), Manifest.load(out))
    assert old is not None
    try:
        assert old.render(MESSAGES) == "D<|user|>ab<|assistant|>"
    finally:
        old.close()
