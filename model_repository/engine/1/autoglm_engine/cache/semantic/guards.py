"""What embeddings are blind to: two questions that differ in one of these do not mean the same, however near they are.

numbers and negations must be equal; so must what looks like code, what is quoted, and capitalised names; no word of one
may be the opposite of a word of the other; and two questions that are the same but for a word or two, or for their
order, are taken to differ in just that. Chinese is compared by characters. Every rule can only refuse: a refusal costs
a computation, a wrong answer costs trust.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container

from .words import CHINESE_FILLERS, CHINESE_NUMERALS, CHINESE_OPPOSITES, FILLERS, NEGATIONS, NUMBER_WORDS, OPPOSITES

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_CODE = re.compile(
    r"`[^`]+`|[A-Za-z_]\w*(?:(?:::|\.|_)\w+)+(?:\(\))?|--?[A-Za-z][\w-]*|\w+\(\)|[a-z]+[A-Z]\w*|[=<>!+*/&|^%]{1,3}"
)
_QUOTED = re.compile(r"[\"“”「《]([^\"“”」》]+)[\"“”」》]")
_NAME = re.compile(r"(?<=[\w,;:] )[A-Z]\w*|\b[A-Z][A-Z0-9]+\b")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:[.,:]\d+)*|[\u3400-\u9fff]")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_CHINESE_NEGATION = re.compile(r"[不没无非未别勿莫]")
_CHOICE = re.compile(r"(.)不\1|有没有|是否")  # "is it or not": a question, not a negation
_FEW_WORDS, _FEW_CHARACTERS = 2, 4  # a difference of so many is the whole difference
_MIN_SHARED_CHARACTERS = 0.5
_ENDINGS = ("ing", "ed", "es", "s")


def may_mean_the_same(one: str, other: str) -> bool:
    return not refusals(one, other)


def refusals(one: str, other: str) -> list[str]:
    """The rules that keep them apart, by name."""
    rules = {
        "numbers": _numbers(one) != _numbers(other),
        "negations": _negations(one) != _negations(other),
        "code": set(_CODE.findall(one)) != set(_CODE.findall(other)),
        "quoted": _quoted(one, other) or _quoted(other, one),
        "names": _lacks_names(one, other) or _lacks_names(other, one),
        "opposites": _are_opposed(one, other),
        "few words": _differ_in_few(one, other),
        "order": _differ_in_order(one, other),
        "characters": _share_few_characters(one, other),
    }
    return [name for name, refuses in rules.items() if refuses]


def _numbers(text: str) -> Counter[str]:
    digits = [number.replace(",", "").rstrip(".:") for number in _NUMBER.findall(text)]
    words = [NUMBER_WORDS[word] for word in _words(text) if word in NUMBER_WORDS]
    return Counter(digits + words + [c for c in text if c in CHINESE_NUMERALS])


def _negations(text: str) -> int:
    english = sum(word in NEGATIONS or word.endswith("n't") for word in _words(text))
    return english + len(_CHINESE_NEGATION.findall(_CHOICE.sub("", text)))


def _quoted(one: str, other: str) -> bool:
    """Something is quoted that the other does not say."""
    return any(said.lower() not in other.lower() for said in _QUOTED.findall(one))


def _lacks_names(one: str, other: str) -> bool:
    """A capitalised word that does not begin the sentence, and that the other does not have."""
    there = {_stem(word) for word in re.findall(r"\w+", other.lower())}
    return any(_stem(name.lower()) not in there for name in _names(one))


def _names(text: str) -> list[str]:
    return [name for name in _NAME.findall(text) if name != "I"]


def _are_opposed(one: str, other: str) -> bool:
    """One has a word and the other its opposite, and neither has both."""
    first, second = set(_words(one)), set(_words(other))
    english = any(_parts(a, b, first, second) or _parts(b, a, first, second) for a, b in OPPOSITES)
    return english or any(_parts(a, b, one, other) or _parts(b, a, one, other) for a, b in CHINESE_OPPOSITES)


def _parts(a: str, b: str, one: Container[str], other: Container[str]) -> bool:
    return a in one and b in other and b not in one and a not in other


def _differ_in_few(one: str, other: str) -> bool:
    """Equal but for one place, where each has a word or two of its own in place of the other's; in Chinese also where
    only one has some, since the embedder reads few of its characters."""
    first, second = _content(one), _content(other)
    begin = _common(first, second)
    end = _common(first[begin:][::-1], second[begin:][::-1])
    own, others = (words[begin : len(words) - end] for words in (first, second))
    if not (own or others) or not (_is_chinese(one) or (own and others)):
        return False
    few = _FEW_CHARACTERS if _is_chinese(one) else _FEW_WORDS
    return begin + end >= max(len(own), len(others)) and max(len(own), len(others)) <= few


def _differ_in_order(one: str, other: str) -> bool:
    """The same words in another order, which may say who does what to whom, or what becomes what."""
    first, second = _content(one), _content(other)
    return first != second and sorted(first) == sorted(second)


def _share_few_characters(one: str, other: str) -> bool:
    first, second = (set(filter(_CHINESE.match, _content(text))) for text in (one, other))
    if not first and not second:
        return False
    return len(first & second) < _MIN_SHARED_CHARACTERS * len(first | second)


def _content(text: str) -> list[str]:
    """The words that carry meaning, in order, without endings; Chinese by characters."""
    return [_stem(word) for word in _words(text) if word not in FILLERS and word not in CHINESE_FILLERS]


def _words(text: str) -> list[str]:
    found: list[str] = _WORD.findall(text.lower().replace("’", "'"))
    return found


def _stem(word: str) -> str:
    ending = next((ending for ending in _ENDINGS if word.endswith(ending) and len(word) - len(ending) >= 3), "")
    return word[: len(word) - len(ending)]


def _common(one: list[str], other: list[str]) -> int:
    """How many of the first words are equal."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _is_chinese(text: str) -> bool:
    return _CHINESE.search(text) is not None
