"""The dashboard asks for nothing that the running servers do not expose."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import pytest
import yaml
from autoglm_cli.server.local_server import LocalServer
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.gateway.dashboard_queries import Exposed, complaints, selectors
from tests.support.gateway.gateway_server import GatewayThread

DEPLOY = Path(__file__).parents[2] / "deploy"
KEYWORDS = {"rate", "increase", "histogram_quantile"}  # misspelt, they are no PromQL
ROWS = ["Traffic", "Latency", "Tokens", "Engine", "Caches", "Errors"]
PAGE = """
# TYPE requests_total counter
requests_total{status="200",endpoint="/v1"} 1
requests_total{status="503",endpoint="/v1"} 1
# TYPE in_flight gauge
in_flight{endpoint="/v1"} 1
# TYPE seconds histogram
seconds_bucket{endpoint="/v1",le="1"} 1
seconds_bucket{endpoint="/v1",le="+Inf"} 1
seconds_sum{endpoint="/v1"} 1
seconds_count{endpoint="/v1"} 1
"""


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "monitoring" / "grafana-dashboard.json").read_text())
    return found


def targets() -> Iterator[tuple[str, str, str]]:
    """(title, query, legend) of each query."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


@pytest.mark.parametrize(
    ("query", "legend", "complaint"),
    [
        ("sum by (status) (rate(requests_total[1m]))", "{{status}}", None),
        ('sum(rate(requests_total{status=~"5..", job="gateway"}[$__rate_interval])) / 2', "", None),
        ("histogram_quantile(0.9, sum by (le, endpoint) (rate(seconds_bucket[5m])))", "{{endpoint}}", None),
        (
            "topk(3, max by (endpoint) (in_flight)) - on (endpoint) sum without (instance) (in_flight)",
            "{{endpoint}}",
            None,
        ),
        ("sum(rate(request_total[1m]))", "", "no server exposes request_total"),
        ("sum by (stat) (rate(requests_total[1m]))", "", "stat is no label of"),
        ("sum by (endpoint) (sum by (status) (rate(requests_total[1m])))", "", "endpoint is no label of"),
        ('sum(rate(requests_total{stat="200"}[1m]))', "", "requests_total has no label stat"),
        ('sum(rate(requests_total{status="500"}[1m]))', "", "matches none of"),
        ('sum(rate(requests_total{status=~"50[0-2]"}[1m]))', "", "matches none of"),
        ("rate(seconds_bucket[1m]) / on (kind) rate(seconds_count[1m])", "", "kind is no label of"),
        ("sum(requests_total)", "", "requests_total is a counter, inside no function"),
        ("sum(rate(in_flight[1m]))", "", "in_flight is a gauge, inside rate"),
        ("histogram_quantile(0.9, sum(rate(seconds_bucket[5m])))", "", "has lost its label le"),
        ("sum(rate(requests_total[1m]))", "{{status}}", "{{status}} is no label of the result"),
        ("sum(rate(requests_total[1m])", "", "sum(rate"),
    ],
)
def test_the_check_sees_what_is_wrong(query: str, legend: str, complaint: str | None) -> None:
    found = complaints(query, Exposed.on(PAGE), legend)
    assert (not found) if complaint is None else complaint in found[0]


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    panels = board["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    assert [(one["name"], one["type"]) for one in board["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("model", "query"),
    ]
    assert len({panel["id"] for panel in panels}) == len(panels) and board["uid"] and board["schemaVersion"] >= 36
    shown = [panel for panel in panels if panel["type"] != "row"]
    assert all(one["datasource"]["uid"] == "${datasource}" for panel in shown for one in (panel, *panel["targets"]))
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({(panel["title"]) for panel in shown}) == len(shown)


def test_figures_of_engines_can_be_told_apart_by_model() -> None:
    """A server may have several engines: each query of their metrics has the filter that chooses one."""
    for title, query, _ in targets():
        for selector in selectors(promql.parse(query.replace("$__rate_interval", "1m"))):
            is_engines = re.match("autoglm_(?!gateway_)", selector.name)
            filters = [(matcher.name, matcher.value) for matcher in selector.matchers.matchers]
            assert (("model", "$model") in filters) == bool(is_engines), title


def test_the_scrape_configuration_names_both_servers() -> None:
    config = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())
    ports = [target for job in config["scrape_configs"] for one in job["static_configs"] for target in one["targets"]]
    assert ports == ["127.0.0.1:8080", "127.0.0.1:8002"]


@pytest.fixture(scope="module")
def exposed(server: LocalServer) -> Exposed:
    """By the real server and a gateway, once answers, failures and a client that left were seen."""
    with (
        GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as gateway,
        httpx.Client(base_url=gateway.url, timeout=300) as http,
    ):
        body = {"model": "autoglm", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        http.post("/v1/chat/completions", json=body).raise_for_status()
        http.post("/v1/completions", json={"model": "autoglm", "prompt": "Once", "max_tokens": 4}).raise_for_status()
        with http.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True, "max_tokens": 200, "ignore_eos": True}
        ) as stream:
            next(stream.iter_lines())
        failing = GatewaySettings(servers=("127.0.0.1:9",))
        with GatewayThread(failing) as broken, httpx.Client(base_url=broken.url, timeout=300) as other:
            assert other.post("/v1/chat/completions", json=body).status_code == 503
            pages = [other.get("/metrics").text]
        return Exposed.on(*pages, *_settled(http, server))


def _settled(http: httpx.Client, server: LocalServer) -> list[str]:
    """Both pages, when the engine has published and the gateway has noticed who left."""
    import time

    give_up_at = time.monotonic() + 120
    while True:
        with urllib.request.urlopen(server.metrics_url) as answer:
            pages = [http.get("/metrics").text, answer.read().decode()]
        if 'status="499"' in pages[0] and 'finish_reason="cancelled"' in pages[1]:
            return pages
        assert time.monotonic() < give_up_at, pages
        time.sleep(0.1)


@pytest.mark.server
def test_every_query_asks_for_what_is_exposed(exposed: Exposed) -> None:
    found = {f"{title}: {one}" for title, query, legend in targets() for one in complaints(query, exposed, legend)}
    assert not found, "\n".join(sorted(found))


@pytest.mark.server
def test_no_query_would_pass_with_a_name_or_a_label_misspelt(exposed: Exposed) -> None:
    unseen = []
    for title, query, legend in targets():
        words = {
            word
            for word in re.findall(r"[a-z_][a-z0-9_]{3,}", query.replace("$__rate_interval", ""))
            if word not in KEYWORDS
        }
        for word in words:
            wrong = re.sub(rf"\b{word}\b", f"{word}s", query)
            if not complaints(wrong, exposed, legend):
                unseen.append(f"{title}: {wrong}")
    assert not unseen


@pytest.mark.server
def test_every_metric_of_the_gateway_is_shown(exposed: Exposed) -> None:
    queries = " ".join(query for _, query, _ in targets())
    names = {name for name in exposed.series if name.startswith("autoglm_gateway_") and not name.endswith("_created")}
    unshown = {
        name
        for name in names
        if name.removesuffix("_sum").removesuffix("_count").removesuffix("_bucket") not in queries
    }
    assert not unshown and len(names) > 15
