"""An agent's loop of three steps with tools, through the gateway, on a tiny random model of each family: what is in the
prompt at each step is what transformers renders of the conversation that the caller has.

The model's calls are forced by grammars, so that a random model makes them too. Between the gateway and the model are
the client, the server's own door and its guides.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from autoglm_client.transport.requests import is_control
from autoglm_engine.core import Request
from autoglm_engine.guided.grammar import GuideCompiler
from autoglm_engine.messages import unpack_request
from autoglm_engine.options.options import OptionRules
from autoglm_engine.tokenizer.artifact_texts import with_visible_calls
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.tokenizer.tool_format import call_tokens
from autoglm_engine.triton.tokenizer_model import RequestPreprocessor
from autoglm_gateway.settings.model import GatewaySettings
from llguidance import LLTokenizer
from tokenizers import AddedToken, Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template
from tritonclient.grpc import service_pb2 as pb

from tests.support.client.client_fakes import FakeTransport, end_mark, response
from tests.support.engine.fakes import byte_tokenizer
from tests.support.engine.thinking_templates import WITH_TOOLS
from tests.support.engine.tool_templates import GLM_METADATA, GLM_SYSTEM_ITEM, GLM_XML, LLAMA, MISTRAL, QWEN
from tests.support.export.tiny_models import tiny_model
from tests.support.gateway.gateway_fakes import opened

pytestmark = pytest.mark.slow

MAX_LENGTH = 4096
NUM_THOUGHT = 3  # tokens of thinking: a random model has no end of it
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Zürich", 'Fort "X"']},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather: 天气", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now", "description": "The time"}},
]
RESULTS = {"get_weather": '{"sky": "<blue>"}', "now": "a quarter past nine"}


@dataclass(frozen=True)
class Family:
    """`marks`: tokens of its own."""

    architecture: str
    template: str
    marks: tuple[str, ...] = ()


FAMILIES = {
    "chatml": Family("qwen3", QWEN, ("<tool_call>", "</tool_call>")),
    "chatml, thinking": Family("qwen3", WITH_TOOLS, ("<tool_call>", "</tool_call>", "<think>", "</think>")),
    "llama 3": Family("llama", LLAMA),
    "mistral": Family("llama", MISTRAL, ("[TOOL_CALLS]",)),
    "glm4": Family("glm4", GLM_METADATA),
    "glm4 chat": Family("glm", GLM_SYSTEM_ITEM),
    "glm4 xml": Family("glm4", GLM_XML, ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>")),
}


class TinyServer(FakeTransport):
    """Answers with the likeliest tokens of a random model that the guide allows. `prompts`: what it read."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        tokenizer = Tokenizer.from_str(byte_tokenizer().to_str())
        tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in family.marks])
        self.tokenizer = with_visible_calls(tokenizer)
        size = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self.eos = self.tokenizer.encode("</s>").ids[0]
        self.template = ChatTemplate(family.template, SPECIAL)
        self._door = RequestPreprocessor(
            Prompter(self.tokenizer, self.template, MAX_LENGTH), OptionRules(MAX_LENGTH, size, {}), "a"
        )
        library = LLTokenizer(self.tokenizer.to_str(), n_vocab=size, eos_token=[self.eos])
        self._guides = GuideCompiler(lambda: library, size, [self.eos])
        self._model = tiny_model(family.architecture, vocab_size=size, max_position_embeddings=MAX_LENGTH)
        form = self.template.call_form
        self.limits |= {"call_form": form.told(), "call_tokens": call_tokens(self.tokenizer, form)}
        if marks := self.template.thinking:
            self.limits["thinking"] = dataclasses.astuple(marks)
            self._closing = self.tokenizer.encode(marks.end).ids[0]
        self.prompts: list[str] = []

    async def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]:
        if is_control(request):
            async for answer in super().stream(request):
                yield answer
            return
        admitted = self._door.admit(tensors_of(request))
        asked = unpack_request(request.id, admitted.token_ids, admitted.request, "a")
        self.prompts.append(self.tokenizer.decode(admitted.token_ids.tolist(), skip_special_tokens=False))
        ids, reason = self._tokens_of(asked)
        yield response(self.tokenizer.decode(ids), reason, len(ids), prompt_thinks=asked.prompt_thinks)
        yield end_mark()

    def _tokens_of(self, asked: Request) -> tuple[list[int], str]:
        with torch.inference_mode():
            return self._tokens(asked)

    def _tokens(self, asked: Request) -> tuple[list[int], str]:
        guide = self._guides.compile(asked.sampling)
        state = guide.begin() if guide else None
        past, step, ids = None, torch.tensor([asked.prompt_ids.tolist()]), list[int]()
        while len(ids) < asked.sampling.max_tokens:
            out = self._model(step, past_key_values=past, use_cache=True)
            logits, past = out.logits[0, -1].numpy(), out.past_key_values
            allowed = state.allowed() if state else np.ones(len(logits), bool)
            token_id = int(np.where(allowed, logits, -np.inf).argmax())
            if asked.prompt_thinks and len(ids) == NUM_THOUGHT:
                token_id = self._closing
            if token_id == self.eos:
                return ids, "stop"
            ids.append(token_id)
            step = torch.tensor([[token_id]])
            if state:
                state.count(token_id)
        return ids, "length"


def tensors_of(request: pb.ModelInferRequest) -> dict[str, Any]:
    """As Triton gives them to the tokenizer model."""
    kinds = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "BOOL": "?"}
    found: dict[str, Any] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            found[tensor.name] = np.array([list(texts_of(raw))], dtype=np.object_)
        else:
            found[tensor.name] = np.frombuffer(raw, kinds[tensor.datatype]).reshape(1, -1)
    return found


def texts_of(raw: bytes) -> Iterator[bytes]:
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        yield raw[4:end]
        raw = raw[end:]


def expected(family: Family, messages: list[dict[str, Any]]) -> str:
    """What transformers makes of the caller's conversation: arguments are objects, content that is null is "". GLM-4's
    own code tells calls and results as turns of its own."""
    turns = copy.deepcopy(messages)
    for turn in turns:
        turn["content"] = turn.get("content") or ""
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    tools: list[dict[str, Any]] | None = TOOLS
    if family.template in (GLM_METADATA, GLM_SYSTEM_ITEM):
        turns = [turn for told in turns for turn in as_glm(told)]
    if family.template == GLM_SYSTEM_ITEM:
        turns, tools = [{"role": "system", "content": "", "tools": TOOLS}, *turns], None
    (text,), _ = render_jinja_template(
        [turns], tools, chat_template=family.template, add_generation_prompt=True, **SPECIAL
    )
    return str(text)


def as_glm(turn: dict[str, Any]) -> list[dict[str, Any]]:
    if turn["role"] == "tool":
        return [{"role": "observation", "content": turn["content"]}]
    calls = [call["function"] for call in turn.get("tool_calls", ())]
    named = [
        {"role": "assistant", "metadata": call["name"], "content": json.dumps(call["arguments"], ensure_ascii=False)}
        for call in calls
    ]
    return named or [{"role": turn["role"], "content": turn["content"]}]


@pytest.mark.parametrize("name", FAMILIES)
async def test_each_step_has_the_prompt_that_transformers_renders(name: str) -> None:
    family = FAMILIES[name]
    server = TinyServer(family)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather, and what time is it?"}]
    conversations, choices = [], ({"name": "get_weather"}, {"name": "now"}, None)
    try:
        async with opened(GatewaySettings(), server) as gateway:
            client: Any = gateway.openai("x")
            for chosen in choices:
                conversations.append(copy.deepcopy(messages))
                choice = {"type": "function", "function": chosen} if chosen else "auto"
                answer = await client.chat.completions.create(
                    model="autoglm", messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=200 if chosen else 4
                )
                if chosen:
                    (call,) = answer.choices[0].message.tool_calls
                    assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == chosen["name"]
                    messages += [
                        answer.choices[0].message.model_dump(exclude_none=True),
                        {"role": "tool", "tool_call_id": call.id, "content": RESULTS[chosen["name"]]},
                    ]
    finally:
        server.template.close()
    thinks = family.template == WITH_TOOLS
    assert [bool(turn.get("reasoning_content")) for turn in messages[1::2]] == [thinks] * 2
    assert server.prompts == [expected(family, conversation) for conversation in conversations]
    arguments = json.loads(messages[1]["tool_calls"][0]["function"]["arguments"])
    assert arguments["city"] in ("Zürich", 'Fort "X"') and 0 <= arguments["days"] <= 9
    assert all(result.strip("{}") in server.prompts[-1].replace("\\", "") for result in RESULTS.values())
