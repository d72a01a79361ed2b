"""Open-AutoGLM's growing history through the gateway: earlier steps are texts, since each screenshot leaves its message
once it is answered. Whatever their number, the answer is that of transformers, and what did not change is not computed
again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import openai
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_export.screens.checkpoint import CHECKPOINT
from autoglm_export.screens.questions import agents_text
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_perf.in_process.fidelity import log_probabilities
from autoglm_perf.vision_model.answering import MAX_TOKENS, TransformersAnswers
from autoglm_perf.vision_model.asked import Asked
from transformers import AutoTokenizer

from tests.conftest import MODEL_REPOSITORY
from tests.support.export.artifacts import kept_export
from tests.support.gateway.gateway_server import GatewayThread
from tests.support.vision.phone import Phone, data_url

pytestmark = [pytest.mark.server, pytest.mark.parity]

NUM_EARLIER = (0, 1, 5, 20)  # steps, of those that are compared with transformers
SYSTEM = {"role": "system", "content": "You operate a phone."}


@dataclass(frozen=True)
class Step:
    asked: Asked
    answer: Any  # the API's


@pytest.fixture(scope="module")
def steps() -> Iterator[list[Step]]:
    """One task of 21 steps, each of which adds its text and its answer to the next one's prompt."""
    artifact = kept_export(
        "screens-history", CHECKPOINT, runtime="onnx", precision="fp32", max_slots=2, max_length=2048
    )
    with (
        LocalServer(MODEL_REPOSITORY, artifact=artifact) as server,
        GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="EMPTY", max_retries=0) as api,
    ):
        yield list(task(api, Phone.scripted("history", max(NUM_EARLIER) + 1)))


def task(api: Any, phone: Phone) -> Iterator[Step]:
    context: list[dict[str, Any]] = [SYSTEM]
    while phone.num_right < len(phone.screens):
        file, question = phone.screenshot(), phone.question
        text = {"type": "text", "text": agents_text(question.task, "Demo")}
        image = {"type": "image_url", "image_url": {"url": data_url(file)}}
        answer = api.chat.completions.create(
            model="autoglm-phone-9b",
            messages=[*context, {"role": "user", "content": [image, text]}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            logprobs=True,
        )
        shown = [*context, {"role": "user", "content": [{"type": "image"}, text]}]
        yield Step(Asked(shown, file, question.button.box), answer)
        said = answer.choices[0].message.content
        context += [{"role": "user", "content": [text]}, {"role": "assistant", "content": said}]
        phone.num_right += 1


@pytest.mark.parametrize("num_earlier", NUM_EARLIER)
def test_the_answer_is_that_of_transformers(steps: list[Step], num_earlier: int) -> None:
    """Its text, the length of the prompt, and how likely each token is."""
    step = steps[num_earlier]
    expected = TransformersAnswers(CHECKPOINT).answer(step.asked)
    (choice,) = step.answer.choices
    assert choice.message.content == expected.text
    assert step.answer.usage.prompt_tokens == expected.num_prompt
    said = np.array([token.logprob for token in choice.logprobs.content])
    likely = log_probabilities(expected.logits)[np.arange(len(said)), expected.token_ids[: len(said)]]
    np.testing.assert_allclose(said, likely, rtol=0, atol=1e-3)


def test_what_stands_before_the_last_screenshot_is_not_computed_again(steps: list[Step]) -> None:
    """Up to the begin of the message that had a screenshot in the step before: exactly what two prompts have in
    common."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)
    prompts = [
        tokenizer.apply_chat_template(step.asked.messages, add_generation_prompt=True, return_dict=False)
        for step in steps
    ]
    cached = [step.answer.usage.prompt_tokens_details.cached_tokens for step in steps]
    assert cached == [0, *(num_common(*pair) for pair in pairwise(prompts))]
    assert cached[-1] > 500 and all(low < high for low, high in pairwise(cached))


def num_common(first: list[int], second: list[int]) -> int:
    return next(place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
