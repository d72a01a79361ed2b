"""The fixed text that the parity gate measures on: English, Chinese and code, written for it."""

from __future__ import annotations

ENGLISH = """\
The lighthouse at the end of the harbour was built in 1871, after a winter in which four fishing boats were lost within
sight of the town. Its first keeper, a retired carpenter, climbed the ninety-two steps twice a day to trim the wick and
wind the clockwork that turned the lens. He kept a diary of the weather, and because he was a careful man the diary is now
one of the longest unbroken records of wind and rain on that coast. Scientists have used it to show that the storms of the
late nineteenth century came earlier in the autumn than they do today, and that the sea was colder in spring.

When electricity arrived, the lamp no longer needed a keeper, but the town asked for one all the same. "A light that nobody
watches," the mayor said, "is only a machine." So the post remained, paid for by a small tax on every boat that used the
harbour. The last keeper retired in 1988. Her daughter, who studied engineering, designed the solar panels that power the
lamp now. Visitors can climb the stairs on Sundays, and on clear evenings they see the islands to the west, the road along
the cliffs, and the lights of the next town. Water boils at one hundred degrees Celsius at sea level; the capital of France
is Paris; the Earth turns once a day, and the moon is about four hundred thousand kilometres away.
"""

CHINESE = """\
手机上的智能助手要做的第一件事,是看懂屏幕。它先截取当前画面,找到按钮、输入框和列表,再根据用户的要求决定下一步操作。
例如,用户说:“帮我在地图里搜索附近的咖啡馆,选择评分最高的一家,然后导航过去。”助手需要打开地图,点击搜索框,输入文字,
等待结果出现,比较评分,最后点击导航。每一步之后,它都要再看一次屏幕,确认操作是否成功。如果页面没有变化,就要换一种方法。

北京是中国的首都,长江是中国最长的河流。春天来了,公园里的花都开了,孩子们在草地上放风筝,老人们坐在长椅上聊天。
服务器收到请求以后,先把文字变成数字,再交给模型计算,最后把结果一个字一个字地送回来。速度越快,用户等待的时间就越短。
"""

CODE = '''\
from __future__ import annotations

import heapq
from collections.abc import Iterable


class RunningMedian:
    """Keeps the median of the numbers seen so far in two heaps."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._lower: list[float] = []  # negated, so that the largest comes first
        self._upper: list[float] = []
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        if self._lower and value > -self._lower[0]:
            heapq.heappush(self._upper, value)
        else:
            heapq.heappush(self._lower, -value)
        if len(self._lower) > len(self._upper) + 1:
            heapq.heappush(self._upper, -heapq.heappop(self._lower))
        elif len(self._upper) > len(self._lower):
            heapq.heappush(self._lower, -heapq.heappop(self._upper))

    @property
    def median(self) -> float:
        if not self._lower:
            raise ValueError("the median of no numbers is not defined")
        if len(self._lower) > len(self._upper):
            return -self._lower[0]
        return (self._upper[0] - self._lower[0]) / 2


if __name__ == "__main__":
    median = RunningMedian([5, 1, 4])
    for number in range(10):
        median.add(number)
        print(f"{number:>3} {median.median:.1f}")
'''

TEXTS = {"english": ENGLISH, "chinese": CHINESE, "code": CODE}
