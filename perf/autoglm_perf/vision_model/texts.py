"""Conversations to train on: a system prompt, the agent's earlier steps, a screenshot, and question after question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from autoglm_export.screens.questions import Question, agents_text, answer, ask
from autoglm_export.screens.screen import Screen, random_screen

_APPS = (
    *("System Home", "Settings", "Chrome", "Clock", "Maps", "Gmail", "Demo", "WeChat", "Notes", "Files", "Camera"),
    *("微信", "设置", "抖音", "美团", "淘宝"),
)
_SYSTEM = (
    *(
        "You are an agent that operates a phone.",
        "You operate a phone.",
        "Answer with one action.",
        "You see a screen.",
    ),
    *("You are a helpful assistant.", "Say where to tap.", "Coordinates go from 0 to 999.", "你操作手机。"),
)
_WORDS = (
    *("the", "of", "to", "and", "a", "in", "is", "that", "for", "it", "as", "with", "on", "this", "an", "action"),
    *("tap", "element", "screen", "app", "user", "answer", "think", "do", "finish", "message", "start", "end"),
    *("swipe", "back", "home", "wait", "type", "text", "button", "page", "point", "list", "integer", "from", "0"),
    *("to", "999", "when", "if", "not", "all", "then", "##", "#", "**", "-", "<think>", "</think>", "<answer>"),
    *("</answer>", 'do(action="Tap",', "element=[x,y])", 'do(action="Back")', 'do(action="Swipe",'),
    *("start=[x1,y1],", "end=[x2,y2])", 'finish(message="xxx")', "red", "blue", "green", "1", "2", "3", "7", "The"),
    *("You", "当前", "页面", "操作", "点击", "坐标", "屏幕", "应用", "用户", "任务", "如果", "没有", "按钮"),
    *("返回", "等待", "输入", "文本"),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """`text`: of the user; `seen`: with the screenshot before it. `answer`: what is to be said."""

    text: str
    seen: bool
    answer: str
    learned: bool = True
    asked: Question | None = None  # where `text` asks it, with the screenshot before it


@dataclass(frozen=True, slots=True)
class Conversation:
    system: str
    turns: tuple[Turn, ...]


def conversation(
    rng: Random, screen: Screen, *, num_questions: int, history: float, by_number: float = 0.5
) -> Conversation:
    """`by_number`: how many of the questions name a number. `history`: how often the first one stands in an earlier
    step of the agent, whose screenshot is gone."""
    system = system_prompt(rng) if rng.random() < 0.5 else ""
    questions = [ask(screen, str(rng.random()), by_number=by_number) for _ in range(num_questions)]
    first = _steps(rng, questions[0]) if rng.random() < history else [_first(rng, questions[0])]
    later = [Turn(one.task, False, answer(one.button.box), asked=one) for one in questions[1:]]
    return Conversation(system, (*first, *later))


def _first(rng: Random, question: Question) -> Turn:
    app = rng.choice(_APPS)
    text = question.task if rng.random() < 0.3 else agents_text(question.task, app)
    if rng.random() < 0.2:
        text = f"{question.task}\n\n{agents_text(None, app)}"
    return Turn(text, True, answer(question.button.box), asked=question)


def _steps(rng: Random, question: Question) -> list[Turn]:
    app = rng.choice(_APPS)
    earlier = [
        Turn(agents_text(None if step else question.task, app), False, _earlier_answer(rng), learned=False)
        for step in range(rng.randint(1, 4))
    ]
    return [*earlier, Turn(agents_text(None, app), True, answer(question.button.box))]


def _earlier_answer(rng: Random) -> str:
    return f"<think></think><answer>{answer(rng.choice(random_screen(str(rng.random())).buttons).box)}</answer>"


def system_prompt(rng: Random) -> str:
    """Sentences, or a page of words."""
    if rng.random() < 0.7:
        return " ".join(rng.sample(_SYSTEM, rng.randint(1, 3)))
    return "".join(rng.choice(_WORDS) + rng.choice((" ", " ", " ", "\n", ", ")) for _ in range(rng.randint(5, 60)))


def corpus(count: int = 3000) -> list[str]:
    """What the tokenizer is made from."""
    rng, lines = Random("corpus"), []
    for index in range(count):
        screen = random_screen(f"corpus {index}")
        talk = conversation(rng, screen, num_questions=2, history=0.3)
        lines += [talk.system, *(text for turn in talk.turns for text in (turn.text, turn.answer))]
    return lines


@dataclass(frozen=True, slots=True)
class Part:
    """Text as the chat template writes it. `asked`: the question whose word for the button stands in it."""

    text: str
    learned: bool = False
    asked: Question | None = None


def rendered(talk: Conversation) -> list[Part]:
    """Each answer ends with the next `<|user|>`."""
    parts = [Part("[gMASK]<sop>" + (f"<|system|>\n{talk.system}" if talk.system else ""))]
    for turn in talk.turns:
        image = "<|begin_of_image|><|image|><|end_of_image|>" if turn.seen else ""
        parts.append(Part("<|user|>", parts[-1].learned))
        parts.append(Part(f"\n{image}{turn.text}<|assistant|>\n", asked=turn.asked))
        parts.append(Part(turn.answer, turn.learned))
    return [*parts, Part("<|user|>", learned=True)]


def as_messages(talk: Conversation) -> Sequence[dict[str, object]]:
    """What a client would send to be answered with the last turn's answer."""
    found: list[dict[str, object]] = [{"role": "system", "content": talk.system}] if talk.system else []
    for turn in talk.turns:
        image = [{"type": "image"}] if turn.seen else []
        found.append({"role": "user", "content": [*image, {"type": "text", "text": turn.text}]})
        found.append({"role": "assistant", "content": turn.answer})
    return found[:-1]
