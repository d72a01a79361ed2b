"""Open-AutoGLM's loop over a phone that is drawn: screenshot, answer, tap, next screen, twenty times.

Requests made as the agent makes them are always tested; its own code where its repository is at hand:
`OPEN_AUTOGLM=FOLDER pytest tests/vision/screens`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_export.screens.checkpoint import CHECKPOINT
from autoglm_export.screens.questions import agents_text, tapped
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_perf.vision_model.answering import TransformersAnswers
from autoglm_perf.vision_model.asked import Asked, is_inside

from tests.conftest import MODEL_REPOSITORY
from tests.support.gateway.gateway_server import GatewayThread
from tests.support.vision.phone import SIZE, Phone, data_url
from tests.support.vision.screens_model import screens_artifact

pytestmark = [pytest.mark.server, pytest.mark.parity]

NUM_STEPS, STEPS_OF_A_TASK = 20, 5
PENALTY = 0.2
GRAMMAR = {"guided_grammar": "open-autoglm"}
ASKED: dict[str, Any] = {
    "model": "autoglm-phone-9b",
    "max_tokens": 3000,
    "temperature": 0.0,
    "top_p": 0.85,
    "frequency_penalty": PENALTY,
    "stream": True,
}
SYSTEM = "You operate a phone."


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with (
        LocalServer(MODEL_REPOSITORY, artifact=screens_artifact("int8")) as server,
        GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as gateway,
    ):
        yield f"{gateway.url}/v1"


@dataclass
class Step:
    asked: Asked
    answer: str
    right: bool


def loop(api: Any, phone: Phone) -> Iterator[Step]:
    """A task is a conversation that keeps texts and answers, and each screenshot until it is answered."""
    context: list[dict[str, Any]] = []
    while phone.num_right < len(phone.screens):
        if phone.num_right % STEPS_OF_A_TASK == 0:
            context = [{"role": "system", "content": SYSTEM}]
        file, question = phone.screenshot(), phone.question
        text = {"type": "text", "text": agents_text(question.task, "Demo")}
        image = {"type": "image_url", "image_url": {"url": data_url(file)}}
        sent = [*context, {"role": "user", "content": [image, text]}]
        stream = api.chat.completions.create(messages=sent, extra_body=GRAMMAR, **ASKED)
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        x, y = tapped(answer) or (0, 0)
        right = phone.tap(int(x / 1000 * SIZE[0]), int(y / 1000 * SIZE[1]))
        shown = [*copy.deepcopy(context), {"role": "user", "content": [{"type": "image"}, text]}]
        yield Step(Asked(shown, file, question.button.box), answer, right)
        if not right:
            return
        context += [{"role": "user", "content": [text]}]
        context += [{"role": "assistant", "content": f"<think></think><answer>{answer}</answer>"}]


def test_every_tap_of_twenty_steps_is_inside_its_button_as_often_as_transformers(address: str) -> None:
    """Four tasks of five steps. Each step's message says which button is meant, as the agent's first one does: this
    small model has not learned to look for the task in earlier messages, where the agent leaves it."""
    with openai.OpenAI(base_url=address, api_key="EMPTY", max_retries=0) as api:
        steps = list(loop(api, Phone.scripted("agent", NUM_STEPS)))
    assert [step.right for step in steps] == [True] * NUM_STEPS
    reference = TransformersAnswers(CHECKPOINT)
    expected = [reference.answer(step.asked, frequency_penalty=PENALTY).text for step in steps]
    assert sum(is_inside(step.asked, answer) for step, answer in zip(steps, expected, strict=True)) == NUM_STEPS


@pytest.mark.skipif("OPEN_AUTOGLM" not in os.environ, reason="OPEN_AUTOGLM names no folder with Open-AutoGLM")
def test_open_autoglms_own_agent_taps_its_way_through(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent, client, parser and action handler; only the device is ours. A task is one step long, since its second
    message would not name the button."""
    monkeypatch.syspath_prepend(os.environ["OPEN_AUTOGLM"])
    agents, models = import_module("phone_agent.agent"), import_module("phone_agent.model")
    phone = Phone.scripted("agent", NUM_STEPS)
    monkeypatch.setattr(import_module("phone_agent.device_factory"), "_device_factory", device(phone))
    config = agents.AgentConfig(max_steps=1, system_prompt=SYSTEM)
    agent = agents.PhoneAgent(models.ModelConfig(address, extra_body=GRAMMAR), config)
    for number in range(NUM_STEPS):
        agent.run(phone.question.task)
        assert phone.num_right == len(phone.taps) == number + 1


def device(phone: Phone) -> Any:
    """What the agent asks a phone for."""

    def screenshot(device_id: str | None = None) -> Any:
        return SimpleNamespace(
            base64_data=data_url(phone.screenshot()).partition(",")[2], width=SIZE[0], height=SIZE[1]
        )

    return SimpleNamespace(
        get_screenshot=screenshot,
        get_current_app=lambda device_id=None: "Demo",
        tap=lambda x, y, device_id=None: phone.tap(x, y),
    )
