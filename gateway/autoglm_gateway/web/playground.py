"""The page at `/`: its files are read when the application is made, and kept by browsers for as long as they stay as
they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

INDEX = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The page loads its own files and asks its own gateway, nothing else, and no text can become a script.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # what its user adds to a message
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked about each time
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """By name."""
    folder = resources.files(__package__) / "page"
    return {entry.name: _page_file(entry.name, entry.read_bytes()) for entry in folder.iterdir() if entry.is_file()}


def make_router() -> APIRouter:
    router, files = APIRouter(include_in_schema=False), page_files()

    @router.get("/")
    async def index(request: Request) -> Response:
        return _answer(request, files[INDEX])

    @router.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return _answer(request, files[name])

    return router


def _page_file(name: str, content: bytes) -> PageFile:
    media_type = MEDIA_TYPES[name[name.rindex(".") :]]
    return PageFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answer(request: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    if _knows(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def _knows(if_none_match: str, etag: str) -> bool:
    """RFC 9110, section 13.1.2: tags are compared weakly."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]
