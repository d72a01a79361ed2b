"""Files beside the weights that hold anything at all: opened, or refused in a sentence about what is wrong there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError, ExportError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.export.plain_checkpoints import write_folder

KEYS = {
    "tokenizer_config.json": (
        *("eos_token", "bos_token", "pad_token", "image_token", "chat_template", "added_tokens_decoder"),
        *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens", "tokenizer_class"),
    ),
    "special_tokens_map.json": ("eos_token", "unk_token", "additional_special_tokens", "x_token"),
    "added_tokens.json": ("<|end|>", "<|user|>", "<new>", "a"),
    "generation_config.json": (
        *("eos_token_id", "bos_token_id", "do_sample", "temperature", "top_k", "max_new_tokens", "min_new_tokens"),
        *("suppress_tokens", "bad_words_ids", "stop_strings", "num_beams", "sequence_bias", "max_length"),
    ),
    "chat_template.json": ("chat_template",),
    "processor_config.json": ("chat_template", "image_processor"),
}
TEXTS = st.sampled_from(["", "<|end|>", "<new>", "a", "default", "tool_use", "Qwen2Tokenizer", "\ud800", "256"])
SCALARS = st.none() | st.booleans() | st.integers(-2, 301) | st.sampled_from([2**31, 1e300, -0.5]) | TEXTS
TOKENS = st.fixed_dictionaries({"content": SCALARS}, optional={"special": st.booleans(), "lstrip": SCALARS})
VALUES = st.recursive(
    SCALARS | TOKENS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("259"), inner, max_size=3),
    max_leaves=6,
)
FILES = st.sampled_from(sorted(KEYS)).flatmap(
    lambda name: st.tuples(st.just(name), st.dictionaries(st.sampled_from(KEYS[name]), VALUES, max_size=4))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("hostile") / "m")
    (folder / "chat_template.jinja").unlink()
    return folder


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(FILES, max_size=3))
def test_a_folder_is_opened_or_refused_by_name(folder: Path, files: list[tuple[str, dict[str, Any]]]) -> None:
    for name in KEYS:
        (folder / name).unlink(missing_ok=True)
    for name, content in files:
        (folder / name).write_text(json.dumps(content))
    try:
        open_checkpoint(folder)
    except ExportError as error:
        assert error.__cause__ is None, "a sentence that names nothing"


@pytest.mark.parametrize("name", sorted(KEYS))
@pytest.mark.parametrize("content", ["[]", "7", "{", "null", '"x"'])
def test_a_file_that_holds_no_object_is_named(folder: Path, name: str, content: str) -> None:
    for other in KEYS:
        (folder / other).unlink(missing_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(folder)
