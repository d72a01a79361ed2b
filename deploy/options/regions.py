"""Parts of a file that are made, between two marks: lines of comments with `#`, or comments of Markdown anywhere."""

from __future__ import annotations

import re


def with_region(text: str, name: str, body: str) -> str:
    """`body` in place of what stands between the marks BEGIN `name` and END `name`, which are there once."""
    made, count = _pattern(name).subn(lambda found: found["begin"] + body + found["end"], text)
    assert count == 1, f"the marks of {name} are there {count} times"
    return made


def without_region(text: str, name: str) -> str:
    return _pattern(name).sub("", text)


def _pattern(name: str) -> re.Pattern[str]:
    begin = rf"(?P<begin># BEGIN {name}\b[^\n]*\n|<!-- BEGIN {name}\b[^\n]*? -->)"
    end = rf"(?P<end>[ ]*# END {name}\b|<!-- END {name} -->)"
    return re.compile(f"{begin}.*?{end}", re.DOTALL)
