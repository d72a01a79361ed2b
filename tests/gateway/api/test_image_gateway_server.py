"""Screens through the gateway, the client and the command line to a real server: transformers' own answers to them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from autoglm_cli import app
from autoglm_client import Client, Image, InvalidRequestError, LocalServer
from autoglm_export.export import export
from autoglm_gateway.settings.model import GatewaySettings
from PIL import Image as Pillow
from typer.testing import CliRunner

from tests.conftest import MODEL_REPOSITORY
from tests.support.export.tiny_glm4v import (
    expanded,
    image_file,
    reference_greedy,
    reference_pixels,
    tiny_tokenizer,
    write_tiny_glm4v,
)
from tests.support.gateway.gateway_server import GatewayThread

pytestmark = [pytest.mark.server, pytest.mark.parity]

MAX_TOKENS = 8
PLACE = "<|begin_of_image|><|image|><|end_of_image|>"
GREEDY: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True}
QUESTION = "What is on it?"
SCREENS = [image_file(60, 90, seed=seed) for seed in range(4)]


@dataclass(frozen=True)
class Sighted:
    server: LocalServer
    client: Client
    openai: openai.OpenAI
    model: Any
    url: str  # of the gateway

    def ask(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = httpx.post(f"{self.url}{path}", json=body, timeout=60)
        return answer.status_code, answer.json()

    def tokens(self, **body: Any) -> dict[str, Any]:
        status, answer = self.ask("/tokenize", **body)
        assert status == 200, answer
        return answer

    def chat(self, *content: Any, **options: Any) -> Any:
        """As Open-AutoGLM's agent asks."""
        parts = [{"type": "text", "text": part} if isinstance(part, str) else picture(part) for part in content]
        return self.openai.chat.completions.create(
            model="autoglm-phone-9b",
            messages=[{"role": "user", "content": parts}],  # type: ignore[misc, list-item]
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            extra_body={"ignore_eos": True},
            **options,
        )

    def expected(self, prompt: str, images: list[bytes]) -> str:
        """transformers' answer to the user's turn `prompt`."""
        tokenizer = tiny_tokenizer()
        ids = tokenizer.encode(f"[gMASK]<sop><|user|>\n{prompt}<|assistant|>\n", add_special_tokens=False).ids
        grids = [(rows // 2, columns // 2) for _, rows, columns in reference_pixels(images)[1].tolist()]
        text: str = tokenizer.decode(reference_greedy(self.model, expanded(ids, grids), images, MAX_TOKENS))
        return text


def picture(file: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file).decode()}"}}


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sighted]:
    folder = tmp_path_factory.mktemp("sighted")
    model = write_tiny_glm4v(folder / "checkpoint", text={"max_position_embeddings": 1024})
    export(folder / "checkpoint", folder / "artifact", runtime="onnx", precision="fp32")
    with (
        LocalServer(MODEL_REPOSITORY, artifact=folder / "artifact") as server,
        Client(server.grpc_url) as client,
        GatewayThread(GatewaySettings(servers=(server.grpc_url,), tool_format="glm")) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="EMPTY", max_retries=0) as api,
    ):
        yield Sighted(server, client, api, model, gateway.url)


def test_the_agents_request_is_answered_as_transformers_does(sighted: Sighted) -> None:
    """The image first, then the text; each screen its own answer, whole and streamed, at once and alone."""
    expected = [sighted.expected(PLACE + QUESTION, [screen]) for screen in SCREENS]
    assert len(set(expected)) == len(SCREENS)
    with ThreadPoolExecutor(len(SCREENS)) as pool:
        answers = list(pool.map(lambda screen: sighted.chat(screen, QUESTION), SCREENS))
    assert [answer.choices[0].message.content for answer in answers] == expected
    streamed = sighted.chat(SCREENS[2], QUESTION, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == expected[2]


def test_usage_counts_the_tokens_of_images(sighted: Sighted) -> None:
    """A screen of 60 x 90 is 2 x 3 tokens between its two marks."""
    alone, seen = sighted.chat(QUESTION), sighted.chat(SCREENS[0], QUESTION)
    assert seen.usage.prompt_tokens - alone.usage.prompt_tokens == 2 * 3 + 2


def test_images_keep_their_places_among_texts(sighted: Sighted) -> None:
    prompt = f"{PLACE}a{PLACE}b{PLACE}"
    answer = sighted.chat(SCREENS[0], "a", SCREENS[1], "b", SCREENS[2])
    assert answer.choices[0].message.content == sighted.expected(prompt, SCREENS[:3])


def test_the_client_sends_what_it_is_given(sighted: Sighted, tmp_path: Path) -> None:
    expected = sighted.expected(PLACE + QUESTION, SCREENS[:1])
    pixels = Pillow.open(BytesIO(SCREENS[0]))
    (tmp_path / "screen.png").write_bytes(SCREENS[0])
    for source in (SCREENS[0], tmp_path / "screen.png", Image(SCREENS[0]).data_url, np.asarray(pixels), pixels):
        asked = [{"role": "user", "content": [Image(source), QUESTION]}]
        assert sighted.client.generate(asked, **GREEDY).text == expected
    shown = ["--image", str(tmp_path / "screen.png"), "--url", sighted.server.grpc_url, "-n", "1", "-t", "0"]
    told = CliRunner().invoke(app, ["generate", QUESTION, *shown])
    assert told.exit_code == 0 and expected.startswith(told.stdout.rstrip("\n"))


def test_what_the_server_refuses_is_one_sentence(sighted: Sighted) -> None:
    cut = SCREENS[0][:60]
    with pytest.raises(InvalidRequestError, match="an image cannot be read"):
        sighted.client.generate([{"role": "user", "content": [Image(cut), QUESTION]}])
    with pytest.raises(openai.BadRequestError, match="an image cannot be read"):
        sighted.chat(cut, QUESTION)
    assert sighted.client.limits().max_images == 10
    with pytest.raises(openai.BadRequestError, match="the request has 11 images; this model takes 10 at most"):
        sighted.chat(*SCREENS[:1] * 11)


def test_ten_screenshots_of_the_agents_size_fit(sighted: Sighted) -> None:
    """1.2 MB each: as many as there may be."""
    pixels = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    screen = Image(pixels).file
    assert len(screen) > 1_200_000
    answer = sighted.chat(*[screen] * 10, QUESTION)
    assert answer.choices[0].message.content and answer.usage.prompt_tokens > 10 * 64


TOOLS = [{"type": "function", "function": {"name": "tap", "parameters": {"type": "object", "properties": {}}}}]
LOW = {"type": "image_url", "image_url": {**picture(image_file(900, 1200, seed=9))["image_url"], "detail": "low"}}
SAID = {"type": "text", "text": QUESTION}
ASKED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": QUESTION}]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}], "tools": TOOLS},
    {"messages": [{"role": "user", "content": QUESTION}], "tools": TOOLS, "tool_choice": "none"},
    {"messages": [{"role": "user", "content": [picture(SCREENS[0]), SAID]}]},
    {"messages": [{"role": "user", "content": [picture(SCREENS[0]), SAID, picture(image_file(300, 200, seed=8))]}]},
    {"messages": [{"role": "user", "content": [LOW, SAID]}]},
    {
        "messages": [{"role": "user", "content": [picture(image_file(300, 200, seed=8)), SAID]}],
        "mm_processor_kwargs": {"max_pixels": 20_000},
    },
    {"prompt": QUESTION},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(asked))
def test_tokens_are_counted_as_usage_counts_them(sighted: Sighted, asked: dict[str, Any]) -> None:
    """Of a text, a conversation, its tools where they are told of, and images however large they become."""
    path = "/v1/completions" if "prompt" in asked else "/v1/chat/completions"
    status, answer = sighted.ask(path, model="autoglm", max_tokens=1, **asked)
    assert status == 200, answer
    told = sighted.tokens(model="autoglm", **asked)
    assert told["count"] == len(told["tokens"]) == answer["usage"]["prompt_tokens"]
    assert told["max_model_len"] == 1024 and told["token_strs"] is None


def test_image_tokens_are_shown_as_the_models_one_for_images(sighted: Sighted) -> None:
    tokenizer = tiny_tokenizer()
    told = sighted.tokens(messages=ASKED[3]["messages"], return_token_strs=True)
    image = tokenizer.token_to_id("<|image|>")
    at = told["tokens"].index(image)
    assert told["tokens"][at : at + 6] == [image] * 6 and told["tokens"].count(image) == 2 * 3
    expected = tokenizer.encode(f"[gMASK]<sop><|user|>\n{PLACE}{QUESTION}<|assistant|>\n", add_special_tokens=False)
    assert told["tokens"][:at] + told["tokens"][at + 5 :] == expected.ids
    assert told["token_strs"] == [tokenizer.id_to_token(token_id) for token_id in told["tokens"]]
    cut = sighted.tokens(messages=ASKED[3]["messages"], add_generation_prompt=False)
    assert cut["tokens"] + tokenizer.encode("<|assistant|>\n", add_special_tokens=False).ids == told["tokens"]
    status, back = sighted.ask("/detokenize", tokens=told["tokens"])
    images = PLACE.replace("<|image|>", "<|image|>" * 6)
    assert (status, back) == (200, {"prompt": f"[gMASK]<sop><|user|>\n{images}{QUESTION}<|assistant|>\n"})
    assert (
        sighted.client.tokenize([{"role": "user", "content": [Image(SCREENS[0]), QUESTION]}]).num_tokens
        == told["count"]
    )
    assert sighted.client.detokenize(told["tokens"]) == back["prompt"]


def test_what_is_longer_than_the_model_takes_is_counted_too(sighted: Sighted) -> None:
    words = QUESTION * 2000
    told = sighted.tokens(prompt=words)
    assert told["tokens"] == tiny_tokenizer().encode(words).ids and told["count"] > 1024
    assert sighted.ask("/v1/completions", model="autoglm", prompt=words)[0] == 400
    alone, seen = (
        sighted.tokens(messages=[{"role": "user", "content": [*images, {"type": "text", "text": words}]}])["count"]
        for images in ([], [picture(SCREENS[0])] * 10)
    )
    assert alone > 1024 and seen - alone == 10 * (2 * 3 + 2)


def test_tokens_that_do_not_exist_and_broken_images_are_one_sentence(sighted: Sighted) -> None:
    last = tiny_tokenizer().get_vocab_size() - 1
    status, answer = sighted.ask("/detokenize", tokens=[0, last + 1])
    expected = f"detokenize[1] is {last + 1}; the tokens of this model are 0 to {last}"
    assert (status, answer["error"]["message"]) == (400, expected)
    content = [picture(SCREENS[0][:20]), SAID]
    status, answer = sighted.ask("/tokenize", messages=[{"role": "user", "content": content}])
    assert status == 400 and "images[0]" in answer["error"]["message"], answer
