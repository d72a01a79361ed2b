"""Thinking with the real server: a tiny random model whose chat template opens it, unless it is switched off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from autoglm_cli import app
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client, InvalidRequestError, ThinkingMarks
from autoglm_export.export import export
from autoglm_gateway.settings.model import GatewaySettings
from tokenizers import AddedToken, Tokenizer
from typer.testing import CliRunner

from tests.conftest import MODEL_REPOSITORY
from tests.support.engine.thinking_templates import OPENED_HYBRID
from tests.support.export.tiny_models import write_checkpoint
from tests.support.gateway.gateway_server import GatewayThread

pytestmark = pytest.mark.server

HELLO = [{"role": "user", "content": "How many?"}]
ASKED: dict[str, Any] = {"model": "autoglm", "messages": HELLO, "max_tokens": 6}
CLOSING = 260  # token </think>
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("thinker")
    write_checkpoint(folder / "checkpoint", "llama", vocab_size=CLOSING + 1)
    tokenizer = Tokenizer.from_file(str(folder / "checkpoint" / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    tokenizer.save(str(folder / "checkpoint" / "tokenizer.json"))
    (folder / "checkpoint" / "chat_template.jinja").write_text(OPENED_HYBRID, encoding="utf-8")
    export(folder / "checkpoint", folder / "artifact", runtime="onnx", precision="fp32", max_slots=2, max_length=256)
    with LocalServer(MODEL_REPOSITORY, artifact=folder / "artifact") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(thinker: LocalServer) -> Iterator[GatewayThread]:
    with GatewayThread(GatewaySettings(servers=(thinker.grpc_url,))) as running:
        yield running


@pytest.fixture(scope="module")
def api(gateway: GatewayThread) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def told(said: Any) -> tuple[str, str]:
    return getattr(said, "reasoning_content", None) or "", said.content or ""


def streamed(api: Any, **more: Any) -> tuple[str, str]:
    parts = [told(chunk.choices[0].delta) for chunk in api.chat.completions.create(**ASKED, stream=True, **more)]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


def test_the_prompt_decides_where_the_answer_begins(api: Any) -> None:
    thought, kept, plain = (api.chat.completions.create(**ASKED, **more) for more in ({}, {}, {"extra_body": OFF}))
    reasoning, content = told(thought.choices[0].message)
    assert reasoning and not content and streamed(api) == (reasoning, "")
    assert kept.autoglm["cache_hit"] == "exact" and told(kept.choices[0].message) == (reasoning, "")
    reasoning, content = told(plain.choices[0].message)
    assert content and not reasoning and streamed(api, extra_body=OFF) == ("", content)
    assert thought.usage.completion_tokens == plain.usage.completion_tokens == 6


def test_tokens_are_counted_with_the_same_variables(gateway: GatewayThread, api: Any) -> None:
    for more in ({}, OFF):
        count = httpx.post(f"{gateway.url}/tokenize", json={"messages": HELLO, **more}).json()["count"]
        assert count == api.chat.completions.create(**ASKED, extra_body=more).usage.prompt_tokens


def test_a_guide_holds_after_thinking(api: Any) -> None:
    """`</think>` is the likeliest token wherever it may come."""
    bias = {"logit_bias": {str(CLOSING): 100}}
    guided = {"guided_regex": "[0-9]{2}"}
    answer = api.chat.completions.create(**ASKED, **bias, extra_body=guided).choices[0]
    assert told(answer.message)[1].isdigit() and len(told(answer.message)[1]) == 2 and answer.finish_reason == "stop"
    answer = api.chat.completions.create(**ASKED, **bias, extra_body={**guided, **OFF}).choices[0]
    assert told(answer.message)[0] == "" and told(answer.message)[1].isdigit()


def test_the_clients_and_the_command_say_it_too(thinker: LocalServer) -> None:
    with Client(thinker.grpc_url) as client:
        assert client.limits().thinking == ThinkingMarks("<think>", "</think>")
        thought = client.chat(HELLO, max_tokens=6)
        plain = client.chat(HELLO, max_tokens=6, chat_template_kwargs=OFF["chat_template_kwargs"])
        assert thought.prompt_thinks and not plain.prompt_thinks and thought.text != plain.text
        with pytest.raises(InvalidRequestError, match="which the model sets and a request cannot"):
            client.chat(HELLO, chat_template_kwargs={"bos_token": "x"})
    flags = ["--url", thinker.grpc_url, "-n", "6", "--template-kwargs", json.dumps(OFF["chat_template_kwargs"])]
    result = CliRunner().invoke(app, ["generate", "How many?", *flags])
    assert result.exit_code == 0 and plain.text.strip() in result.output
