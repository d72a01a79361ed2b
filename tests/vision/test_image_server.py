"""Images through the real server: what it answers is what transformers says of the same screens."""

from __future__ import annotations

import base64
import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
from autoglm_client import LocalServer
from autoglm_export.export import export
from tritonclient.utils import InferenceServerException

from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_glm4v import image_file, tiny_tokenizer, write_tiny_glm4v

pytestmark = [pytest.mark.server, pytest.mark.parity]
REPOSITORY = Path(__file__).parents[2] / "model_repository"
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on it?"}]}]
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("glm4v")
    found = write_tiny_glm4v(folder / "checkpoint")
    export(folder / "checkpoint", folder / "artifact", runtime="onnx", precision="fp32")
    return found, folder / "artifact"


@pytest.fixture(scope="module")
def server(model: tuple[Any, Path]) -> Iterator[LocalServer]:
    with LocalServer(REPOSITORY, artifact=model[1]) as made:
        yield made


def ask(server: LocalServer, messages: Any, images: list[bytes], **options: Any) -> str:
    inputs = [_strings("messages", [json.dumps(messages).encode()]), _number("max_tokens", MAX_TOKENS)]
    if images:
        inputs.append(_strings("images", images))
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("autoglm", inputs)
        result, error = answers.get(timeout=120)
    if error is not None:
        raise error
    text: bytes = result.as_numpy("text_output").reshape(-1)[0]
    return text.decode()


def _strings(name: str, values: list[bytes]) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1, len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([values], dtype=np.object_))
    return tensor


def _number(name: str, value: int) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[value]], np.int32))
    return tensor


def transformers_says(model: Any, images: list[bytes], prompt: str, family: SeeingModel = SEEING["glm4v"]) -> str:
    tokenizer = tiny_tokenizer(tuple(family.ids))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    pixels, grids = family.pixels(images)
    sizes = iter((grids.prod(dim=1) // 4).tolist())
    expanded = [i for one in ids for i in ([one] * next(sizes) if one == family.image else [one])]
    input_ids = torch.tensor([expanded])
    said = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pixel_values=pixels,
        image_grid_thw=grids,
        mm_token_type_ids=(input_ids == family.image).int(),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
    )
    return tokenizer.decode(said[0, len(expanded) :].tolist())


PROMPT = "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>What is on it?<|assistant|>\n"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(60, 90), (112, 84)])
def test_an_answer_about_a_screen_is_what_transformers_says(
    server: LocalServer, model: tuple[Any, Path], size: tuple[int, int], seed: int
) -> None:
    image = image_file(*size, seed=seed)
    assert ask(server, QUESTION, [image]) == transformers_says(model[0], [image], PROMPT)


def test_answers_depend_on_the_pixels_and_come_from_no_other_screen(
    server: LocalServer, model: tuple[Any, Path]
) -> None:
    """Of one size and with one text; asked at once, one after the other, and again."""
    images = [image_file(84, 84, seed=seed) for seed in range(8)]
    expected = [transformers_says(model[0], [image], PROMPT) for image in images]
    assert len(set(expected)) > 4, "a model that does not look"
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda image: ask(server, QUESTION, [image]), images)) == expected
    assert [ask(server, QUESTION, [image]) for image in reversed(images)] == expected[::-1]


def test_several_images_and_turns(server: LocalServer, model: tuple[Any, Path]) -> None:
    images = [image_file(84, 84, seed=1), image_file(56, 140, seed=2), image_file(90, 60, seed=3, kind="JPEG")]
    parts: list[Any] = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "image"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "image"}]},
    ]
    place = "<|begin_of_image|><|image|><|end_of_image|>"
    prompt = f"[gMASK]<sop><|user|>\n{place}a{place}<|assistant|>\nb<|user|>\nc{place}<|assistant|>\n"
    assert ask(server, messages, images) == transformers_says(model[0], images, prompt)


def test_text_alone_is_answered_as_before(server: LocalServer, model: tuple[Any, Path]) -> None:
    said = ask(server, [{"role": "user", "content": "Hello"}], [])
    ids = tiny_tokenizer().encode("[gMASK]<sop><|user|>\nHello<|assistant|>\n", add_special_tokens=False).ids
    answer = model[0].generate(torch.tensor([ids]), max_new_tokens=MAX_TOKENS, do_sample=False)
    assert said == tiny_tokenizer().decode(answer[0, len(ids) :].tolist())


def data_url(image: bytes, kind: str = "png") -> bytes:
    return f"data:image/{kind};base64,".encode() + base64.b64encode(image)


def test_a_data_url_is_its_file(server: LocalServer) -> None:
    image = image_file(60, 90, seed=5)
    assert ask(server, QUESTION, [data_url(image)]) == ask(server, QUESTION, [image])


PNG = image_file(60, 60)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "messages have 1 parts of type image, and images has 0 values"),
        ([PNG, PNG], "messages have 1 parts of type image, and images has 2 values"),
        ([b"https://example.com/screen.png"], "no URL is fetched"),
        ([b"file:///etc/passwd"], "no URL is fetched"),
        ([data_url(PNG)[:-3] + b"*=="], "whose base64 cannot be read"),
        ([b"GIF89a" + bytes(50)], "is of none of the formats PNG, JPEG, WEBP"),
        ([PNG[:40]], "images\\[0\\]"),
        ([PNG[:-200]], "cannot be read"),
        ([b""], "has 0 bytes; an image has 1 to"),
        ([image_file(28, 7000)], "at most 200 times its shorter one"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(server: LocalServer, images: list[bytes], sentence: str) -> None:
    with pytest.raises(InferenceServerException, match=sentence) as caught:
        ask(server, QUESTION, images)
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 500
    assert ask(server, QUESTION, [PNG])


def test_a_text_that_spells_an_image_is_refused(server: LocalServer) -> None:
    with pytest.raises(InferenceServerException, match="2 places for images, and the request has 1 images"):
        ask(server, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<|image|>"}]}], [PNG])


def test_qwen3_vl_is_served_too(tmp_path: Path) -> None:
    """Each screen's answer is its own, and comes again where the image's features, and its prompt, are kept."""
    family, images = SEEING["qwen3_vl"], [image_file(96, 96, seed=seed) for seed in range(4)]
    model = family.write(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "artifact", runtime="onnx", precision="fp32")
    prompt = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is on it?<|im_end|>\n<|im_start|>assistant\n"
    )
    expected = [transformers_says(model, [image], prompt, family) for image in images]
    assert len(set(expected)) > 2, "a model that does not look"
    with LocalServer(REPOSITORY, artifact=tmp_path / "artifact", env={"AUTOGLM_CACHE_MODE": "off"}) as made:
        for each in (images, images[::-1]):
            found = [ask(made, QUESTION, [image]) for image in each]
            assert found == (expected if each is images else expected[::-1])
