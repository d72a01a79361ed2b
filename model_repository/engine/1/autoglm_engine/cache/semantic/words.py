"""The word lists of `cache.semantic.guards`."""

from __future__ import annotations

Pairs = tuple[tuple[str, str], ...]


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> Pairs:
    return tuple((one, other) for one, _, other in (pair.partition("/") for pair in text.split()))


NEGATIONS = _set(
    "not no never without cannot none nothing nobody nowhere neither nor unable except fails failed lacks lacking"
)
NUMBER_WORDS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "eleven": "11",
    "twelve": "12",
    "twenty": "20",
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "twice": "2",
    "double": "2",
    "half": "1/2",
}
CHINESE_NUMERALS = frozenset("二三四五六七八九十百千万亿两半")

# Words that say that something is asked, not what.
FILLERS = _set(
    """a an the this that these those is are was were be been being am do does did done i me my mine you your we us our
    it
    its to of for in on at by with as and or so if then than what what's which who whom how when where why can could
    will
    would shall should may might must please tell give show explain say know want need like there here some any just way
    into from i'd i'll i've i'm use reason meaning mean means command much many amount possible best easy good simple
    word"""
)
CHINESE_FILLERS = frozenset(
    "的了吗呢吧啊呀请问帮我你您是在有个些一下怎么样如何什哪里儿为这那能会可以想要给用与和及也都就该应多少几讲说明现"
)

OPPOSITES = _pairs(
    """on/off open/close start/stop increase/decrease up/down left/right before/after upload/download enable/disable
    add/remove buy/sell ascending/descending gain/lose largest/smallest biggest/smallest fastest/slowest
    advantages/disadvantages advantage/disadvantage encrypt/decrypt first/last best/worst cheapest/expensive
    install/uninstall lock/unlock show/hide accept/reject allow/deny import/export push/pull maximum/minimum max/min
    highest/lowest longest/shortest newest/oldest begin/end win/lose send/receive positive/negative true/false hot/cold
    high/low more/less most/least above/below inside/outside front/back north/south east/west morning/evening day/night
    male/female legal/illegal safe/unsafe possible/impossible subscribe/unsubscribe mute/unmute zip/unzip
    compress/extract sunrise/sunset parent/child input/output row/column rows/columns odd/even lower/upper
    forward/backward approved/unapproved soluble/insoluble"""
)
CHINESE_OPPOSITES = _pairs(
    """打开/关闭 打开/关掉 开门/关门 上传/下载 放大/缩小 增加/减少 升序/降序 最大/最小 最高/最低 最长/最短 最快/最慢
    最好/最差
    增肥/减肥 左/右 前/后 加入/移出 加入/退出 添加/删除 优点/缺点 买/卖 加密/解密 开始/结束 开启/关闭 启用/禁用
    安装/卸载
    导入/导出 第一/最后 早上/晚上 上午/下午 白天/夜晚 输入/输出 最新/最旧 合法/非法 上升/下降"""
)
