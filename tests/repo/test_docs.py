"""The pages below docs/ name only what is there, lead to each other, and are each in an index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
SOURCES = ("model_repository", "client", "export", "gateway", "perf", "deploy")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WRITTEN_LATER = {"docs/gpu-first-hour.md"}  # by `make gpu-first-hour`


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(page: Path) -> list[tuple[str, str]]:
    """(file, anchor) of each link that leads to no other site."""
    return re.findall(r"\]\((?!http)([\w./-]*)#?([\w-]*)\)", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings(page)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_and_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    assert named <= targets
    files = {
        found for found in re.findall(r"deploy/[\w./-]*\w", text) if found != "deploy/engine.env"
    }  # the reader's own
    assert all((ROOT / found).exists() for found in files), files


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_to_a_heading(page: Path) -> None:
    for target, anchor in links(page):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings(there)}, (
                anchor
            )


@pytest.mark.parametrize("folder", sorted(path.parent for path in DOCS.rglob("README.md")), ids=name)
def test_an_index_has_every_page_of_its_folder(folder: Path) -> None:
    pages = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert {target for target, _ in links(folder / "README.md")} == pages


def test_the_readme_leads_to_every_page() -> None:
    reached = {(ROOT / target).resolve() for target, _ in links(ROOT / "README.md")}
    assert [name(page) for page in DOCS.glob("*.md") if page not in reached] == []


@pytest.mark.parametrize("folder", SOURCES)
def test_pages_that_sources_name_are_there_with_their_sections(folder: str) -> None:
    """Also `(docs/page.md, Section)`, as errors say it."""
    for path in (ROOT / folder).rglob("*"):
        if path.suffix not in {".py", ".sh", ".yaml", ".pbtxt"}:
            continue
        for page, section in re.findall(r"(?<![\w/])(docs/[\w/-]+\.md)(?:, ([A-Z]\w+)\))?", path.read_text("utf-8")):
            assert page in WRITTEN_LATER or (ROOT / page).is_file(), f"{path} names {page}"
            assert not section or section in headings(ROOT / page), f"{path} names {section} of {page}"
