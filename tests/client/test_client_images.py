"""Images in messages: what they are made of, how they are sent, and what is refused before anything is sent."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import pytest
from autoglm_client import (
    AsyncClient,
    Client,
    GenerationOptions,
    Image,
    InvalidRequestError,
    Message,
    QueueFullError,
    RetryPolicy,
)
from autoglm_client.images.data_url import file_in_data_url
from autoglm_client.images.image import MAX_IMAGE_BYTES
from autoglm_client.transport.requests import generation_request
from autoglm_client.transport.responses import error_of
from hypothesis import given
from hypothesis import strategies as st

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
HEAD = "data:image/png;base64,"
PNG = b"\x89PNG\r\n\x1a\n"
SECRET = "c2VjcmV0"
BASE64 = re.compile("([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def saved(form: str = "PNG", pixels: npt.NDArray[np.uint8] = PIXELS, **more: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, form, **more)
    return stream.getvalue()


def opened(image: Image) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(image.file))


def sent(content: object) -> tuple[object, list[bytes]]:
    """(the content, the images) as they are on the wire."""
    request = generation_request(
        [Message("user", content)],  # type: ignore[arg-type]
        GenerationOptions(),
        stream=True,
        request_id="r1",
    )
    inputs = inputs_of(request)
    images = elements(inputs["images"]) if "images" in inputs else []
    shapes = {tensor.name: tuple(tensor.shape) for tensor in request.inputs}
    assert shapes.get("images", (1, 0)) == (1, len(images))
    (turn,) = json.loads(inputs["messages"][4:])
    return turn["content"], images


def elements(raw: bytes) -> list[bytes]:
    found, at = list[bytes](), 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return found


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_file_is_sent_as_it_is_whatever_names_it(form: str, tmp_path: Path) -> None:
    file, path = saved(form), tmp_path / "screen"
    path.write_bytes(file)
    url = f"data:image/{form.lower()};base64,{base64.b64encode(file).decode()}"
    for source in (file, path, str(path), url):
        assert Image(source).file == file
    assert Image(file).media_type == f"image/{form.lower()}" and Image(file).data_url == url


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 4]), st.integers(0, 2**32))
def test_an_array_is_a_png_of_the_same_pixels(height: int, width: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, 2 * width, channels), np.uint8)[:, ::2]
    image = opened(Image(pixels))
    assert image.format == "PNG" and image.mode == {3: "RGB", 4: "RGBA"}[channels]
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 3), np.uint8), np.zeros((2, 3, 3), np.float32), np.zeros((0, 3, 3), np.uint8), np.zeros((3, 2, 2))],
)
def test_another_array_is_refused_with_what_it_is(pixels: npt.NDArray[Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"must be uint8 \[height, width, 3 or 4\]"):
        Image(pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_an_image_of_pillow_keeps_its_pixels(mode: str) -> None:
    asked = PIL.Image.fromarray(PIXELS).convert("RGB" if mode == "I;16" else mode)
    asked = PIL.Image.new("I;16", (3, 2), 700) if mode == "I;16" else asked
    assert opened(Image(asked)).convert("RGBA").tobytes() == asked.convert("RGBA").tobytes()


def test_an_image_of_pillow_that_is_to_be_turned_says_so() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    photo = PIL.Image.open(io.BytesIO(saved("JPEG", exif=exif)))
    assert PIL.ImageOps.exif_transpose(opened(Image(photo))).size == (2, 3)
    assert b"eXIf" not in Image(PIL.Image.fromarray(PIXELS)).file


def test_an_image_of_pillow_that_png_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="mode 'CMYK' cannot be saved as PNG"):
        Image(PIL.Image.new("CMYK", (2, 2)))


def test_texts_and_images_keep_their_order() -> None:
    first, second = saved(), saved("JPEG")
    url = {"type": "image_url", "image_url": {"url": HEAD + base64.b64encode(second).decode(), "detail": "high"}}
    content, images = sent([Image(first), "What", {"type": "text", "text": "is"}, url, "on it?"])
    assert content == [
        {"type": "image"},
        {"type": "text", "text": "What"},
        {"type": "text", "text": "is"},
        {"type": "image"},
        {"type": "text", "text": "on it?"},
    ]
    assert images == [first, second]


def test_how_large_an_image_becomes_goes_with_its_mark() -> None:
    file = saved()
    url = f"{HEAD}{base64.b64encode(file).decode()}"
    content, _ = sent(
        [
            Image(file, max_pixels=5_000_000),
            Image(file, min_pixels=9, detail="low"),
            Image(file, detail="high"),
            {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        ]
    )
    asked: list[dict[str, Any]] = [{"max_pixels": 5_000_000}, {"min_pixels": 9, "detail": "low"}, {}, {"detail": "low"}]
    assert content == [{"type": "image", **one} for one in asked]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"max_pixels": 0}, "max_pixels of an image is 0; it must be a whole number from 1 on"),
        ({"min_pixels": True}, "min_pixels of an image is True"),
        ({"detail": "fine"}, "detail of an image is 'fine'; allowed are auto, low, high"),
    ]
    for size, words in wrong:
        with pytest.raises(InvalidRequestError, match=words):
            Image(file, **size)


def test_images_of_all_turns_are_sent_in_order() -> None:
    files = [saved(pixels=PIXELS + np.uint8(one)) for one in range(3)]
    turns: list[Message | dict[str, Any]] = [
        {"role": "user", "content": [Image(files[0]), Image(files[1]), "?"]},
        {"role": "assistant", "content": "a"},
        Message("user", [Image(files[2])]),
    ]
    inputs = inputs_of(generation_request(turns, GenerationOptions(), stream=True, request_id="r1"))
    assert elements(inputs["images"]) == files
    assert json.loads(inputs["messages"][4:])[2]["content"] == [{"type": "image"}]


def test_without_images_nothing_of_them_is_sent() -> None:
    assert sent("hello") == ("hello", []) and sent(["a", "b"])[1] == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.org/a.png", "no URL is fetched"),
        ("file:///etc/passwd", "no URL is fetched"),
        ("there/is/no.png", "cannot be read: No such file"),
        ("nul\0byte", "cannot be read"),
        ("A" * 5000, "a text of 5,000 characters"),
        (b"", "0 bytes"),
        (b"GIF89a", "no PNG, JPEG or WEBP"),
        (b"RIFF\0\0\0\0WAVE", "no PNG, JPEG or WEBP"),
        (PNG + bytes(MAX_IMAGE_BYTES), "larger than 20,971,520 bytes"),
        (7, "not of int"),
        (f"data:image/gif;base64,{SECRET}", "given as 'data:image/gif;base64'"),
        (f"data:text/html,{SECRET}", "given as 'data:text/html'"),
        (f"data:{SECRET * 100}", "a data URL begins with"),
        (f"{HEAD}{SECRET}*", "base64 is broken"),
        (f"{HEAD}{SECRET}é", "base64 is broken"),
        (HEAD + "A" * (4 * MAX_IMAGE_BYTES // 3 + 8), "larger than 20,971,520 bytes"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(source: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Image(source)
    assert words in str(caught.value) and len(str(caught.value)) < 300 and SECRET * 10 not in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": "data:image/png;base64,"},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": f"{HEAD}{SECRET}"}},
    ],
)
def test_a_part_that_is_no_image_is_refused_by_its_place(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.content\[1\]\.image_url") as caught:
        sent(["What?", part])
    assert SECRET not in str(caught.value)


@given(st.text(st.sampled_from("ABx9+/==-\n"), max_size=9))
def test_base64_is_strict(data: str) -> None:
    if BASE64.fullmatch(data):
        assert file_in_data_url(HEAD + data, 100) == base64.b64decode(data)
        return
    with pytest.raises(InvalidRequestError, match="base64 is broken"):
        file_in_data_url(HEAD + data, 100)


@given(st.binary(min_size=1, max_size=50))
def test_any_bytes_in_base64_arrive_unchanged(file: bytes) -> None:
    assert file_in_data_url(HEAD + base64.b64encode(file).decode(), 100) == file


def test_more_than_one_message_can_hold_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved()
    monkeypatch.setattr("autoglm_client.images.messages._MAX_BYTES", 2 * len(file))
    assert sent([Image(file)] * 2)
    with pytest.raises(InvalidRequestError, match=f"have {3 * len(file)} bytes together; {2 * len(file)} can be sent"):
        sent([Image(file)] * 3)


async def test_a_retry_sends_the_same_images_and_reads_no_file_again(tmp_path: Path) -> None:
    path = tmp_path / "screen.png"
    path.write_bytes(saved())
    transport = FakeTransport(Script(errors=[QueueFullError("busy")]))
    content: list[Image | str] = [Image(path), "What is on it?"]
    path.unlink()
    async with AsyncClient("a:1", transport=lambda _: transport, retries=RetryPolicy(first_delay_s=0.001)) as client:
        await client.generate([Message("user", content)])
    assert [elements(inputs_of(one)["images"]) for one in transport.requests] == [[saved()], [saved()]]


def test_every_call_takes_images() -> None:
    transport = FakeTransport()
    asked: Sequence[Message] = [Message("user", [Image(PIXELS), "?"])]
    with Client("a:1", transport=lambda _: transport) as client:
        client.generate(asked)
        client.chat(asked)
        client.stream(asked).read_all()
        list(client.map([asked]))
    assert [len(elements(inputs_of(one)["images"])) for one in transport.requests] == [1, 1, 1, 1]


def test_a_server_that_knows_no_images_is_told_of() -> None:
    error = error_of("[request id: 7] unexpected inference input 'images' for model 'autoglm'")
    assert isinstance(error, InvalidRequestError) and "takes no images" in str(error)


async def test_limits_tell_how_many_images_a_request_may_have() -> None:
    transport = FakeTransport()
    async with AsyncClient("a:1", transport=lambda _: transport) as client:
        assert (await client.limits()).max_images == 0
        transport.limits["max_images"] = 10
        assert (await client.limits()).max_images == 10


def test_nothing_shows_an_images_bytes() -> None:
    assert repr(Image(saved())) == f"<Image image/png, {len(saved())} bytes>"
