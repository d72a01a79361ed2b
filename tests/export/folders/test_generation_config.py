"""generation_config.json: each of transformers' keys is followed, or named where it changes answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.engine.engine import Engine
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import Manifest
from autoglm_engine.options.options import OptionRules
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_export.checkpoint.generation.generation_config import (
    Generation,
    generation_defaults,
    gguf_generation,
    read_generation,
)
from autoglm_export.errors import CheckpointError
from autoglm_export.export import export
from tokenizers import Tokenizer
from typer.testing import CliRunner

from tests.support.export.plain_checkpoints import write_folder
from tests.support.export.tiny_models import VOCAB_SIZE, write_checkpoint

END = 256
GREEDY = {"temperature": 0.0}


def read(raw: dict[str, Any], config: dict[str, Any] | None = None) -> Generation:
    return read_generation(raw, config or {}, vocab_size=VOCAB_SIZE, max_position=512, eos_token_ids=[END])


FOLLOWED: dict[str, tuple[dict[str, Any], Generation]] = {
    "nothing": ({}, Generation(GREEDY)),
    "lengths": (
        {"max_new_tokens": 2048, "min_new_tokens": 3},
        Generation({**GREEDY, "max_tokens": 2048, "min_tokens": 3}),
    ),
    "suppressed": ({"suppress_tokens": [7, END, 7]}, Generation(GREEDY, banned=((7,), (END,)))),
    "bad words, but ends": (
        {"bad_words_ids": [[1, 2], [END], [3], [4, END]]},
        Generation(GREEDY, banned=((1, 2), (3,), (4, END))),
    ),
    "both": ({"suppress_tokens": [3], "bad_words_ids": [[3], [5]]}, Generation(GREEDY, banned=((3,), (5,)))),
    "a stop string": ({"stop_strings": "User:"}, Generation(GREEDY, stop=("User:",))),
    "stop strings": ({"stop_strings": ["a", "b", "a"]}, Generation(GREEDY, stop=("a", "b"))),
    "empty and null": (
        {"suppress_tokens": [], "bad_words_ids": None, "stop_strings": None, "max_new_tokens": None},
        Generation(GREEDY),
    ),
    "sampled": (
        {"do_sample": True, "temperature": 0.5, "top_k": 20, "repetition_penalty": 1.1},
        Generation({"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.1}),
    ),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_what_is_followed(case: str) -> None:
    raw, found = FOLLOWED[case]
    assert read(raw) == found


# generation_config.json, config.json, what is named
NAMED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "beams": ({"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}, {}, ("num_beams 4",)),
    "no repetition": ({"no_repeat_ngram_size": 3}, {}, ("no_repeat_ngram_size 3",)),
    "at the beginning": (
        {"begin_suppress_tokens": [1], "forced_bos_token_id": 2, "forced_eos_token_id": [3]},
        {},
        ("begin_suppress_tokens [1]", "forced_bos_token_id 2", "forced_eos_token_id [3]"),
    ),
    "biases": ({"sequence_bias": [[[1, 2], -1.0]]}, {}, ("sequence_bias [[[1, 2], -1.0]]",)),
    "where it samples": ({"do_sample": True, "typical_p": 0.9, "top_h": 0.4}, {}, ("top_h 0.4", "typical_p 0.9")),
    "where it does not": ({"typical_p": 0.9, "top_h": 0.4, "eta_cutoff": 0.1}, {}, ()),
    "a short length": ({"max_length": 300}, {}, ("max_length 300",)),
    "the positions that there are": ({"max_length": 512}, {}, ()),
    "the library's default length": ({"max_length": 20}, {}, ()),
    "neutral": (
        {"num_beams": 1, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0},
        {},
        (),
    ),
    "config.json alone": (
        {},
        {"repetition_penalty": 1.2, "num_beams": 2, "suppress_tokens": [1], "max_length": 20, "do_sample": False},
        ("num_beams 2 of config.json", "repetition_penalty 1.2 of config.json", "suppress_tokens [1] of config.json"),
    ),
    "config.json beside": ({"eos_token_id": 2}, {"repetition_penalty": 1.2, "num_beams": 2}, ()),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_is_not_followed_is_named(case: str) -> None:
    raw, config, named = NAMED[case]
    found = read(raw, config)
    assert found.unfollowed == named
    assert (found.note or "").endswith(", ".join(named)) and bool(found.note) == bool(named)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "suppressed": ({"suppress_tokens": [300]}, "suppress_tokens is 300; the model's ids are 0 ... 299"),
    "suppressed by one": ({"suppress_tokens": 7}, "suppress_tokens 7; it must be a list of token ids"),
    "a flat list": ({"bad_words_ids": [1]}, "bad_words_ids 1; it must be a list of token ids"),
    "no list": ({"bad_words_ids": {"a": 1}}, "it must be a list of lists of token ids"),
    "an empty word": ({"bad_words_ids": [[]]}, "of other lengths than 1 ... 256 tokens"),
    "an empty stop string": ({"stop_strings": ["a", ""]}, "allowed are up to 16 texts of 1 to 256 characters"),
    "many stop strings": ({"stop_strings": [str(i) for i in range(17)]}, "allowed are up to 16 texts"),
    "no text": ({"stop_strings": 7}, "stop_strings 7; allowed are"),
    "no answer": ({"max_new_tokens": 0}, "max_new_tokens 0; allowed is whole numbers of 1 ... "),
    "half a token": ({"min_new_tokens": 1.5}, "min_new_tokens 1.5; allowed is whole numbers of 0 ... "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    raw, sentence = REFUSED[case]
    with pytest.raises(CheckpointError) as caught:
        read(raw)
    assert sentence in str(caught.value) and "generation_config.json" in str(caught.value)


def test_as_many_are_banned_as_a_request_can_carry() -> None:
    words = [[i, j] for i in range(4) for j in range(256)]
    assert len(read({"bad_words_ids": words}).banned) == 1024
    with pytest.raises(CheckpointError, match=r"bans 1,025 sequences of tokens; at most 1,024"):
        read({"bad_words_ids": words, "suppress_tokens": [1]})


def test_a_gguf_file_suppresses_as_llama_cpp_does() -> None:
    metadata = {"tokenizer.ggml.suppress_tokens": [5, 300, -1, 5]}
    assert gguf_generation(metadata, VOCAB_SIZE) == Generation(GREEDY, banned=((5,),))
    with pytest.raises(CheckpointError, match=r"suppress_tokens is 'x'; it must be a list of token ids"):
        gguf_generation({"tokenizer.ggml.suppress_tokens": "x"}, VOCAB_SIZE)
    with pytest.raises(CheckpointError, match="bans 1,025 tokens; at most 1,024 are allowed"):
        gguf_generation({"tokenizer.ggml.suppress_tokens": list(range(1025))}, 2000)


# Keys of transformers that change no answer of one model that answers by itself: how it is computed, what else is
# returned, and details of beams and of assistants, which are named by their own keys.
WITHOUT_EFFECT = {
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind"),
    *("cache_config", "cache_implementation", "compile_config", "continuous_batching_config", "decoder_start_token_id"),
    *("disable_compile", "diversity_penalty", "early_stopping", "is_assistant", "length_penalty", "low_memory"),
    *("max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("num_beam_groups", "output_attentions", "output_hidden_states", "output_logits", "output_scores"),
    *("pad_token_id", "prefill_chunk_size", "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits"),
    *("return_dict_in_generate", "speculation_type", "target_lookbehind", "use_cache", "use_mtp"),
    *("transformers_version", "_from_model_config"),
}
READ = {"eos_token_id", "bos_token_id", "do_sample", "suppress_tokens", "bad_words_ids", "stop_strings"}
# A value that each key which changes answers may have.
EXAMPLES: dict[str, Any] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"), 0.5),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_beams", "max_length"), 7),
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "min_length", "num_return_sequences"), 7),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), 7),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "penalty_alpha"), 1.5),
    **{key: [[1, 2]] for key in ("constraints", "force_words_ids", "sequence_bias")},
    **{key: [1, 2] for key in ("exponential_decay_length_penalty", "begin_suppress_tokens")},
    "token_healing": True,
    "watermarking_config": {"greenlist_ratio": 0.5},
    "dola_layers": "low",
    "max_time": 1.0,
}


def test_no_key_of_transformers_is_passed_over() -> None:
    from transformers import GenerationConfig

    keys = set(vars(GenerationConfig()))
    assert keys - WITHOUT_EFFECT - READ == set(EXAMPLES)
    for key, value in EXAMPLES.items():
        raw = {"do_sample": True, key: value}
        followed = generation_defaults(raw, VOCAB_SIZE) != generation_defaults({"do_sample": True}, VOCAB_SIZE)
        named = [said.split()[0] for said in read(raw).unfollowed]
        assert (named == [key]) != followed, key


# ---- what a request gets


RULES = OptionRules(64, VOCAB_SIZE, {"max_tokens": 40, "min_tokens": 8}, ("User:",), ((7,), (1, 2)))


def sampling(prompt_length: int = 4, **values: Any) -> SamplingOptions:
    checked = RULES.check(values, prompt_length=prompt_length).sampling
    RULES.recheck(checked)
    return checked


def test_a_request_may_add_to_what_the_model_bans_and_stops_at() -> None:
    assert sampling().stop == ("User:",) and sampling().bad_words == ((7,), (1, 2))
    assert sampling(stop=[b"end", b"User:"]).stop == ("end", "User:")
    assert sampling(bad_words=((9,), (7,))).bad_words == ((9,), (7,), (1, 2))
    assert sampling(ignore_eos=True, stop=[b"end"]).stop == ("end",)
    assert sampling(ignore_eos=True).bad_words == ((7,), (1, 2))


def test_a_request_chooses_its_own_lengths() -> None:
    assert (sampling().max_tokens, sampling().min_tokens) == (40, 8)
    assert sampling(prompt_length=60).max_tokens == sampling(prompt_length=60).min_tokens == 4
    assert sampling(max_tokens=5).min_tokens == 5
    assert (sampling(max_tokens=50, min_tokens=0).max_tokens, sampling(min_tokens=0).min_tokens) == (50, 0)
    assert sampling(guided_regex=b"a+").min_tokens == 0
    with pytest.raises(InvalidRequest, match="min_tokens is 9"):
        sampling(max_tokens=8, min_tokens=9)


# ---- beside transformers


PROMPT = "Where is it?"


@dataclass(frozen=True)
class Served:
    """A tiny model of transformers' and the folder that it was read from."""

    model: Any
    folder: Path

    def tokens(self, generation: dict[str, Any]) -> tuple[list[int], list[int]]:
        """(transformers', ours) with this generation_config.json."""
        (self.folder / "generation_config.json").write_text(json.dumps(generation))
        out = self.folder.parent / "artifact"
        manifest = export(self.folder, out, runtime="onnx", precision="fp32", max_slots=1, max_length=64)
        return self._expected(), _answer(out, manifest)

    def _expected(self) -> list[int]:
        import torch
        from transformers import AutoTokenizer, GenerationConfig

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        ids = torch.tensor([tokenizer(PROMPT).input_ids])
        config = GenerationConfig.from_pretrained(self.folder)
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, tokenizer=tokenizer
        )
        return list(map(int, found[0, ids.shape[1] :]))


def _answer(folder: Path, manifest: Manifest) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = np.array(tokenizer.encode(PROMPT).ids, np.int32)
    options = OptionRules.of(manifest).check({}, prompt_length=len(ids)).sampling
    runner = load_runner(folder, manifest, num_threads=1)
    engine = Engine(runner, TokenText(tokenizer), manifest.eos_token_ids, plain_settings())
    engine.submit(Request("r", ids, options))
    events = []
    while engine.has_work:
        events += engine.step()
    runner.close()
    return [token_id for event in events for token_id in event.token_ids]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("generation") / "llama"
    yield Served(write_checkpoint(folder, "llama"), folder)


def _without_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    return [token for token in tokens if token not in ends]


@pytest.mark.parity
def test_the_same_tokens_as_transformers(served: Served) -> None:
    plain, ours = served.tokens({"eos_token_id": END, "max_new_tokens": 12})
    assert plain == ours and len(set(plain)) > 4
    first, second, third = list(dict.fromkeys(plain))[:3]
    for changes in (
        {"suppress_tokens": [first, second]},
        {"bad_words_ids": [[first, second], [END]]},
        {"suppress_tokens": [first], "bad_words_ids": [[second]]},
    ):
        expected, ours = served.tokens({"eos_token_id": END, "max_new_tokens": 12, **changes})
        assert ours == expected != plain, changes
    for ends in ([third], [END, second], [third, second]):
        expected, ours = served.tokens({"eos_token_id": ends, "max_new_tokens": 12})
        assert _without_end(ours, ends) == _without_end(expected, ends) and len(expected) < 12, ends
        expected, ours = served.tokens({"eos_token_id": ends, "max_new_tokens": 12, "min_new_tokens": 6})
        assert _without_end(ours, ends) == _without_end(expected, ends) and len(expected) >= 6, ends


@pytest.mark.parity
def test_a_stop_string_ends_where_transformers_ends(served: Served) -> None:
    tokenizer = Tokenizer.from_file(str(served.folder / "tokenizer.json"))
    plain, _ = served.tokens({"eos_token_id": END, "max_new_tokens": 12})
    text = tokenizer.decode(plain, skip_special_tokens=False)
    stop = next(character for character in text[3:] if character.isascii() and character.isalnum())
    expected, ours = served.tokens({"eos_token_id": END, "max_new_tokens": 12, "stop_strings": [stop]})
    assert ours == expected and len(expected) < 12


# ---- what the export says


def test_the_export_says_what_it_does_not_follow(tmp_path: Path) -> None:
    from autoglm_cli import app

    folder = write_folder(tmp_path / "m")
    raw = {"num_beams": 4, "no_repeat_ngram_size": 3, "max_new_tokens": 500, "stop_strings": "x"}
    (folder / "generation_config.json").write_text(json.dumps({**raw, "suppress_tokens": [1]}))
    arguments = [folder, "--output", tmp_path / "a", "--runtime", "onnx", "--precision", "fp32", "--max-length", "16"]
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    note = "the checkpoint asks for what is not followed here: no_repeat_ngram_size 3, num_beams 4"
    assert note in result.stderr
    manifest = Manifest.load(tmp_path / "a")
    assert manifest.runtime_details["checkpoint_note"] == note
    assert manifest.generation_defaults == {"temperature": 0.0, "max_tokens": 16}
    assert (manifest.stop_strings, manifest.banned_tokens) == (("x",), ((1,),))
    shown = re.sub(r"\s+", " ", CliRunner().invoke(app, ["inspect", str(tmp_path / "a")]).output)
    lines = ("no_repeat_ngram_size 3, num_beams 4", "stop strings 'x'", "banned tokens 1 sequence ", "token ids 256")
    assert [line for line in lines if line not in shown] == []
    assert re.search("max_tokens 16; temperature 0.0|temperature 0.0; max_tokens 16", shown)
