"""Open-AutoGLM's agent and its deployment check, as they speak to a server, against transformers' own answer.

Their requests: a streamed chat with temperature 0, frequency penalty 0.2, top-p 0.85, at most 3,000 tokens and an empty
`extra_body`, whose key nobody checks; and the check's, which is not streamed and reads the usage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_engine.manifest import Manifest
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_export.checkpoint.bundled import resolve
from autoglm_export.parity.reference import Reference
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_perf.vision_model.answering import FrequencyPenalty

from tests.conftest import MODEL_REPOSITORY
from tests.support.export.artifacts import with_limits
from tests.support.gateway.gateway_server import GatewayThread

pytestmark = [pytest.mark.server, pytest.mark.parity]

MAX_LENGTH = 320
MIN_LEAD = 0.02  # of each token's logit before the next best: a hundred times what two runtimes differ by
ASKED: dict[str, Any] = {
    "model": "autoglm-phone-9b",
    "max_tokens": 3000,
    "temperature": 0.0,
    "top_p": 0.85,
    "frequency_penalty": 0.2,
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [
        {"role": "system", "content": "You operate a phone. Answer with one action and say why."},
        {"role": "user", "content": [{"type": "text", "text": 'Open the music player.\n\n{"current_app": "Home"}'}]},
    ],
    [{"role": "user", "content": "List the numbers from one to forty as words, one after the other."}],
    [
        {"role": "user", "content": [{"type": "text", "text": "打开微信"}]},
        {"role": "assistant", "content": '<think>微信</think><answer>do(action="Launch", app="微信")</answer>'},
        {"role": "user", "content": [{"type": "text", "text": "** Screen Info **\n\n现在做什么?"}]},
    ],
]


@pytest.fixture(scope="module")
def exact(exact_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in float32: what is compared is the sampling, not the rounding of weights."""
    folder = tmp_path_factory.mktemp("exact") / "artifact"
    with_limits(exact_artifact, folder, num_slots=4, max_length=MAX_LENGTH)
    return folder


@pytest.fixture(scope="module")
def client(exact: Path) -> Iterator[openai.OpenAI]:
    with (
        LocalServer(MODEL_REPOSITORY, artifact=exact) as server,
        GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="EMPTY") as made,
    ):
        yield made


@pytest.fixture(scope="module")
def expected(exact: Path) -> list[tuple[str, int]]:
    """(text, number of tokens) of transformers' `generate`, as Open-AutoGLM asks; the last of them ends a stop."""
    import torch

    path, _ = resolve("smollm2")
    model, manifest = Reference.load(path).model, Manifest.load(exact)
    prompter, tokenizer = Prompter.load(exact, manifest), load_tokenizer(exact)
    found = []
    for messages in CONVERSATIONS:
        ids = prompter.from_messages(messages_text(messages)).token_ids
        prompt = torch.from_numpy(ids.astype("int64"))[None]
        with torch.inference_mode():
            generated = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=MAX_LENGTH - len(ids),
                eos_token_id=list(manifest.eos_token_ids),
                pad_token_id=manifest.eos_token_ids[0],
                logits_processor=[FrequencyPenalty(len(ids), 0.2)],
                output_scores=True,
                return_dict_in_generate=True,
            )
        leads = [float(best - second) for best, second in (scores[0].topk(2).values for scores in generated.scores)]
        assert min(leads) > MIN_LEAD, "so near a tie that rounding would decide"
        output = generated.sequences[0, len(ids) :].tolist()
        found.append((tokenizer.decode(output, skip_special_tokens=True), len(output)))
    return found


def messages_text(messages: list[dict[str, Any]]) -> bytes:
    return json.dumps([{**one, "content": _joined(one["content"])} for one in messages], ensure_ascii=False).encode()


def _joined(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_the_agents_stream_is_what_transformers_generates(
    client: openai.OpenAI, expected: list[tuple[str, int]], number: int
) -> None:
    stream = client.chat.completions.create(messages=CONVERSATIONS[number], extra_body={}, stream=True, **ASKED)  # type: ignore[call-overload]
    text = ""
    for chunk in stream:
        if len(chunk.choices) and chunk.choices[0].delta.content is not None:
            text += chunk.choices[0].delta.content
    assert text == expected[number][0]


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_the_deployment_check_reads_the_same_answer_and_its_usage(
    client: openai.OpenAI, expected: list[tuple[str, int]], number: int
) -> None:
    answer = client.chat.completions.create(messages=CONVERSATIONS[number], stream=False, **ASKED)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == expected[number][0]
    assert answer.usage.completion_tokens == expected[number][1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_without_the_penalty_the_answer_is_another_one(client: openai.OpenAI, expected: list[tuple[str, int]]) -> None:
    """So the comparison would notice a penalty that is dropped."""
    asked = {**ASKED, "frequency_penalty": 0.0}
    plain = client.chat.completions.create(messages=CONVERSATIONS[1], **asked)  # type: ignore[call-overload]
    assert plain.choices[0].message.content != expected[1][0]
