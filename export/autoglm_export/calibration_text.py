"""The built-in text that activation scales are calibrated on. It shares no sentence with the parity gate's texts."""

from __future__ import annotations

from pathlib import Path

from .errors import InvalidOption

_ASSISTANT = """\
User: I need a table for four tomorrow at seven in the evening, somewhere near the old harbour, not too loud.
Assistant: I found three restaurants within ten minutes' walk. The first has a quiet room upstairs and costs about 45 euros
a person; the second serves fish only; the third is cheaper but has live music on Thursdays. Shall I reserve the first one?
User: Yes, please. Also remind me at 18:15, and send Anna the address.
Assistant: Done. The reservation is under your name, confirmation number 7F-2291. I set the reminder and sent the message.

The report for the third quarter shows revenue of 12.8 million, up 4.3% on last year, while costs rose by 6.1%. "We hired
earlier than planned," the director said, "and energy was dearer than anyone had expected." Two of the five plants will be
closed for maintenance in January; deliveries should not be affected.
"""

_CHINESE = """\
用户:请帮我订一张明天上午从上海到杭州的高铁票,二等座,靠窗的位置。
助手:好的。我查到八点二十分和九点零五分两班车,票价都是七十三元,车程大约一个小时。您要哪一班?
用户:九点那一班。另外把会议地点发给王经理,并且提醒我带身份证。
助手:已经订好了,座位是六车厢十二号。消息已发送,提醒设在明天早上七点半。

这座城市的图书馆建于一九五三年,收藏了大量关于航海和天文的书籍。每到周末,许多学生都会来这里复习功课。
do(action="Launch", app="微信")
do(action="Tap", element=[512, 884])
do(action="Type", text="今天晚上八点见面可以吗?")
finish(message="消息已经发送给对方。")
"""

_CODE = '''\
import json
from pathlib import Path


def load_prices(path: Path, currency: str = "EUR") -> dict[str, float]:
    """Read a price list; entries in another currency are skipped."""
    prices = {}
    with path.open(encoding="utf-8") as stream:
        for line_number, line in enumerate(stream, start=1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{line_number}: {error.msg}") from error
            if entry.get("currency") == currency:
                prices[entry["sku"]] = round(float(entry["price"]), 2)
    return prices


SELECT customer_id, SUM(amount) AS total FROM orders WHERE placed_at >= '2024-01-01' GROUP BY customer_id HAVING total > 100;
for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }
{"id": 17, "tags": ["alpha", "beta"], "active": true, "ratio": 0.125, "parent": null}
'''

TEXTS = (_ASSISTANT, _CHINESE, _CODE)


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
