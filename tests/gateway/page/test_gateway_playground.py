"""The files of the page at `/`: what they are served with, and that they name nothing outside."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib import resources

import httpx
import pytest
import pytest_asyncio
from autoglm_client import AsyncClient
from autoglm_gateway.app import create_app
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.web.playground import INDEX, page_files

from tests.support.client.client_fakes import FakeTransport

FILES = sorted(page_files())
PATHS = ["/" if name == INDEX else f"/page/{name}" for name in FILES]
LOADED = re.compile(r"""(?:src|<link [^>]*href)="([^"]+)"|from "([^"]+)"|url\(([^)]+)\)""")


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    transport = FakeTransport()
    app = create_app(
        GatewaySettings(), lambda urls, model: AsyncClient(urls, model=model, transport=lambda _: transport)
    )  # type: ignore[arg-type, return-value]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
async def test_a_file_is_sent_once_and_asked_about_from_then_on(http: httpx.AsyncClient, path: str) -> None:
    first = await http.get(path)
    again = await http.get(path, headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    changed = await http.get(path, headers={"If-None-Match": '"other"'})
    head = await http.head(path)
    assert (first.status_code, again.status_code, changed.status_code, head.status_code) == (200, 304, 200, 200)
    assert first.headers["cache-control"] == "no-cache" and again.headers["etag"] == first.headers["etag"]
    assert first.content == changed.content and first.content and not again.content and not head.content


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
async def test_no_script_but_its_own_may_run_and_nothing_else_be_asked(http: httpx.AsyncClient, path: str) -> None:
    headers = (await http.get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect")} == {"'self'"}
    assert policy["img-src"] == "'self' data:"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


async def test_what_is_no_file_of_the_page_is_not_found(http: httpx.AsyncClient) -> None:
    for path in ("/page/nothing.js", "/page/..%2Fapp.py", "/page/%2e%2e/app.py", "/page/"):
        answer = await http.get(path)
        assert answer.status_code == 404 and "error" in answer.json()


def test_files_name_only_each_other_and_all_are_named() -> None:
    files = page_files()
    names = {
        name for file in files.values() for found in LOADED.findall(file.content.decode()) for name in found if name
    }
    assert {name.removeprefix("page/").removeprefix("./") for name in names} | {INDEX} == set(files)


def test_they_are_in_the_package_and_small() -> None:
    folder = resources.files("autoglm_gateway.web") / "page"
    assert {entry.name for entry in folder.iterdir()} == set(FILES)
    assert sum(len(file.content) for file in page_files().values()) < 64 << 10


async def test_the_page_is_no_part_of_the_documented_interface(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert "/v1/chat/completions" in paths and not {"/", "/page/{name}"} & set(paths)
