"""Tasks whose answers copy from their prompt (edits, repetitions, extractions), and tasks whose answers do not.

`{name}` in a task is replaced by something new each time, so that no two prompts are the same.
"""

from __future__ import annotations

import random

NAMES = (
    "amount",
    "sum",
    "result",
    "budget",
    "weight",
    "score",
    "length",
    "volume",
    "height",
    "speed",
    "power",
    "depth",
)

_CODE = """def mean(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)


def variance(values):
    average = mean(values)
    total = 0
    for value in values:
        total = total + (value - average) ** 2
    return total / len(values)
"""
_RECORD = (
    "Order {number}: customer Ada Lovelace, street 12 Analytical Lane, city London, item brass {name} gauge, "
    "quantity 24, price 3.50, total 84.00, status shipped."
)
_STORY = (
    "The quick brown fox jumps over the lazy dog, and then the lazy dog jumps over the quick brown fox, "
    "becuase both of them are bored of the same old {name} about the quick brown fox and the lazy dog."
)

COPYING = (
    "Repeat this code exactly, but rename total to {name}:\n" + _CODE,
    "Write this record as JSON with the keys customer, street, city, item, quantity, price, total, status:\n" + _RECORD,
    "Correct the spelling and repeat the text: " + _STORY,
    "Repeat this text word for word: " + _RECORD + " " + _RECORD,
)
FREE = (
    "Why is the sky blue? Use the word {name} once.",
    "Write a poem about autumn rain and {name}.",
    "Explain how a bicycle stays upright, and what {name} has to do with it.",
    "Name five things to do in Rome for a friend of {name} number {number}.",
)


def chats(tasks: tuple[str, ...], count: int, seed: int) -> list[str]:
    """So many tasks, in turn, each with something of its own."""
    draw = random.Random(seed)
    return [
        tasks[place % len(tasks)].format(name=draw.choice(NAMES), number=draw.randrange(1000, 9999))
        for place in range(count)
    ]
