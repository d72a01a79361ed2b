"""Whether PromQL asks for what servers expose: each metric, each label, and what becomes of it on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

_OF_PROMETHEUS = frozenset({"job", "instance"})  # labels that a scrape adds
_OF_COUNTERS = frozenset({"rate", "increase", "irate"})
_VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}


@dataclass(frozen=True, slots=True)
class Series:
    kind: str  # counter, gauge, histogram ...
    labels: dict[str, set[str]]  # the values that each label has


@dataclass(slots=True)
class Exposed:
    """What some pages of metrics hold, by the name of the sample."""

    series: dict[str, Series] = field(default_factory=dict)

    @classmethod
    def on(cls, *pages: str) -> Exposed:
        exposed = cls()
        for page in pages:
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    name = _written(sample.name, page)
                    series = exposed.series.setdefault(name, Series(family.type, {}))
                    for label, value in sample.labels.items():
                        series.labels.setdefault(label, set()).add(value)
        return exposed


def _written(name: str, page: str) -> str:
    """The parser gives the ending _total to counters that lack it, as Triton's do."""
    return name if re.search(rf"^{name}[{{ ]", page, re.MULTILINE) else name.removesuffix("_total")


def complaints(query: str, exposed: Exposed, legend: str = "") -> list[str]:
    """What is wrong with it; nothing where all that it names is exposed and used as its kind allows."""
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    try:
        tree = promql.parse(query)
    except ValueError as error:
        return [f"{query}: {error}"]
    shown = re.findall(r"{{\s*(\w+)\s*}}", legend)
    return [
        *_wrong(tree, exposed),
        *(f"{{{{{label}}}}} is no label of the result" for label in shown if label not in _labels(tree, exposed)),
    ]


def selectors(node: Any) -> Iterator[promql.VectorSelector]:
    if isinstance(node, promql.VectorSelector):
        yield node
    for child in _children(node):
        yield from selectors(child)


def _wrong(node: Any, exposed: Exposed, called: str = "") -> Iterator[str]:
    """`called`: the function around it."""
    match node:
        case promql.VectorSelector():
            yield from _wrong_selector(node, exposed, called)
        case promql.AggregateExpr() | promql.BinaryExpr():
            for label in _grouped(node):
                if label not in _labels_below(node, exposed):
                    yield f"{label} is no label of {node}"
        case promql.Call() if node.func.name == "histogram_quantile" and "le" not in _labels(node.args[1], exposed):
            yield f"{node} has lost its label le"
    inside = node.func.name if isinstance(node, promql.Call) else called
    for child in _children(node):
        yield from _wrong(child, exposed, inside if isinstance(node, promql.Call | promql.MatrixSelector) else "")


def _wrong_selector(selector: Any, exposed: Exposed, called: str) -> Iterator[str]:
    series = exposed.series.get(selector.name)
    if series is None:
        yield f"no server exposes {selector.name}"
        return
    if (called in _OF_COUNTERS) != (series.kind in ("counter", "histogram")):
        yield f"{selector.name} is a {series.kind}, inside {called or 'no function'}"
    for matcher in selector.matchers.matchers:
        values = series.labels.get(matcher.name)
        if values is None and matcher.name not in _OF_PROMETHEUS:
            yield f"{selector.name} has no label {matcher.name}"
        elif values is not None and not any(_matches(matcher, value) for value in values):
            yield f"{matcher} matches none of {sorted(values)}"


def _matches(matcher: Any, value: str) -> bool:
    match str(matcher.op):
        case "MatchOp.Equal":
            return bool(value == matcher.value)
        case "MatchOp.Re":
            return re.fullmatch(matcher.value, value) is not None
    return True


def _labels(node: Any, exposed: Exposed) -> set[str]:
    """Those that the result has."""
    match node:
        case promql.VectorSelector():
            series = exposed.series.get(node.name)
            return set(series.labels if series else ()) | _OF_PROMETHEUS
        case promql.AggregateExpr():
            if str(node.op) in ("topk", "bottomk"):
                return _labels(node.expr, exposed)
            if node.modifier is None:
                return set()
            if "By" in str(node.modifier.type):
                return set(node.modifier.labels)
            return _labels(node.expr, exposed) - set(node.modifier.labels)
        case promql.Call() if node.func.name == "histogram_quantile":
            return _labels(node.args[1], exposed) - {"le"}
    return _labels_below(node, exposed)


def _labels_below(node: Any, exposed: Exposed) -> set[str]:
    """Those that all of its parts with labels have."""
    parts = [_labels(child, exposed) for child in _children(node) if any(selectors(child))]
    return set.intersection(*parts) if parts else set()


def _grouped(node: Any) -> Iterable[str]:
    if node.modifier is None:
        return ()
    if isinstance(node, promql.AggregateExpr):
        return tuple(node.modifier.labels)
    return tuple(node.modifier.matching.labels) if node.modifier.matching else ()


def _children(node: Any) -> list[Any]:
    match node:
        case promql.BinaryExpr():
            return [node.lhs, node.rhs]
        case promql.Call():
            return list(node.args)
        case promql.AggregateExpr():
            return [node.expr] if node.param is None else [node.param, node.expr]
        case promql.MatrixSelector():
            return [node.vector_selector]
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return [node.expr]
    return []
