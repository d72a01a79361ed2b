"""The fixed text that weight rounding is fitted to: prose, questions and answers, Chinese, code and data, written for it.

Nothing of it occurs in the text that the parity gate measures on.
"""

from __future__ import annotations

from pathlib import Path

from autoglm_export.errors import InvalidOption

_PROSE = """\
Bread needs only flour, water, salt and time. The baker on Mill Lane starts at three in the morning, when the street is
dark, and by six the first loaves stand in the window. She learned the trade from an uncle who never weighed anything: he
felt the dough with the back of his hand and knew whether it wanted more water. She does weigh, because her customers
expect the same loaf on Friday that they liked on Monday, but she still touches every batch before it goes into the oven.

Rivers carry stones downhill and grind them as they go. Near the source the stones are large and sharp; a hundred
kilometres further they are round and fit into a palm, and at the mouth only sand and mud are left. Geologists read this
order backwards. If a cliff far from any water shows a layer of rounded pebbles below a layer of mud, then a river once ran
there, and it slowed down. In 1953 a bridge was closed for three weeks after a flood moved boulders that weighed more than
twelve tons. However, most of the work is done on ordinary days, grain by grain, and nobody notices it.

"Have you read the contract?" asked Marta. Her brother shook his head. He had meant to, he said, but there were forty pages
of it, and the important sentence was probably hidden on page thirty-one. They sat down at the kitchen table with two cups
of tea and a pencil. After an hour they had marked five places that neither of them understood, and one that both of them
understood very well: the rent would rise by 4.5% every January, whatever happened to prices elsewhere.

Quantum mechanics describes how matter behaves at very small scales. A particle does not have a definite position before it
is measured; instead, a wave function gives the probability of finding it in each place. The theory was developed between
1900 and 1930 by Planck, Bohr, Heisenberg, Schrodinger and others, and its predictions agree with experiments to many
decimal places. Lasers, transistors and magnetic resonance imaging would not exist without it.
"""

_DIALOGUE = """\
Question: How many legs do three spiders have?
Answer: A spider has eight legs, so three spiders have 3 x 8 = 24 legs.

Question: Who wrote the play "Hamlet"?
Answer: "Hamlet" was written by William Shakespeare around the year 1600.

User: Can you give me some tips for sleeping better?
Assistant: Of course! Here are five things that help many people:
1. Go to bed and get up at the same time every day, even on weekends.
2. Keep the bedroom dark, quiet and cool.
3. Avoid coffee, black tea and energy drinks after lunch.
4. Put your phone away at least thirty minutes before you go to sleep.
5. If you cannot fall asleep, get up, read something calm, and try again later.

User: Write a short poem about rain.
Assistant: The rain taps softly on the glass,
It silvers every blade of grass,
It fills the gutters, fills the lake,
And keeps the frogs and me awake.

User: Translate "Where is the station?" into Spanish and German.
Assistant: In Spanish: "¿Dónde está la estación?" In German: "Wo ist der Bahnhof?"

Subject: Meeting moved to Thursday
Dear all, the review of the budget is moved from Tuesday to Thursday, 10:30, in room B214. Please send me your figures by
Wednesday noon, so that I can put them into one table. If you cannot come, let me know who will speak for your team.
Best regards, Ingrid
"""

_CHINESE = """\
清晨六点,菜市场已经热闹起来。卖豆腐的大叔把刚做好的豆腐摆在木板上,冒着白白的热气;旁边的阿姨正在给青菜洒水。
来买菜的大多是附近的居民,他们一边挑选,一边聊昨天的新闻和今天的天气。小女孩拉着奶奶的手,想要一串糖葫芦。

问:怎样才能学好一门外语?
答:首先要每天坚持,哪怕只有二十分钟。其次要多听多说,不要怕犯错误。最后,可以把手机的语言改成正在学习的语言,
这样在日常生活中也能不断练习。学习语言没有捷径,但是方法对了,进步会快很多。

人工智能是计算机科学的一个分支,研究如何让机器完成通常需要人类智能的任务,例如识别图像、理解语言和下棋。
二十世纪五十年代,科学家第一次提出这个概念。近年来,随着数据的增加和芯片性能的提高,这一领域发展得非常快。
医生用它分析影像,工厂用它检查产品,老师用它准备课程。当然,它也带来了新的问题,比如隐私和安全。
"""

_CODE = '''\
import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """One line of a meter's log: the hour of the day and the energy used, in kilowatt hours."""

    hour: int
    energy: float


def load(path: Path) -> list[Reading]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter=";")
        return [Reading(int(row["hour"]), float(row["kwh"])) for row in rows]


def busiest_hour(readings: list[Reading]) -> int:
    totals: dict[int, float] = {}
    for reading in readings:
        totals[reading.hour] = totals.get(reading.hour, 0.0) + reading.energy
    return max(totals, key=lambda hour: totals[hour])

/* Reverse a string in place. */
void reverse(char *text, size_t length) {
    for (size_t i = 0; i < length / 2; i++) {
        char swap = text[i];
        text[i] = text[length - 1 - i];
        text[length - 1 - i] = swap;
    }
}

SELECT name, COUNT(*) AS orders FROM customers JOIN orders USING (customer_id) WHERE total > 100 GROUP BY name;

{"action": "tap", "target": {"id": "send_button", "x": 540, "y": 1820}, "reason": "the message is complete", "done": false}

| fruit | price | in stock |
|---|---|---|
| apples | 2.40 | yes |
| plums | 3.15 | no |
'''

TEXTS = (_PROSE, _DIALOGUE, _CHINESE, _CODE)


def texts_of(file: Path | None) -> tuple[str, ...]:
    """The texts to calibrate on: a file of the user's (UTF-8), or the built-in ones."""
    if file is None:
        return TEXTS
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"the calibration text {file} cannot be read: {error}") from None
    if not text.strip():
        raise InvalidOption(f"the calibration text {file} is empty")
    return (text,)
