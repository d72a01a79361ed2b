"""What docs say of the engine's metrics is what it publishes, and the dashboard shows what operators scale by."""

from __future__ import annotations

import json
import re
from pathlib import Path

from autoglm_engine.metrics import ALL_METRICS
from autoglm_engine.triton.metrics_publisher import PREFIX, unit_suffix

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "serving").glob("*.md")}
PUBLISHED = {f"{PREFIX}{spec.name}{unit_suffix(spec)}": spec for spec in ALL_METRICS}


def documented() -> dict[str, tuple[str, str]]:
    """Name -> (kind, what is said)."""
    table = PAGES["metrics.md"].split("| metric | kind | |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| (autoglm_[^|]+) \| (\w+) \| (.+) \|$", table, flags=re.MULTILINE)
    return {name: (kind, said) for names, kind, said in rows for name in names.split(", ")}


def test_the_table_holds_every_metric_and_its_kind() -> None:
    assert {name: kind for name, (kind, _) in documented().items()} == {
        name: spec.kind.value for name, spec in PUBLISHED.items()
    }


def test_the_table_names_each_label() -> None:
    assert {name for name, (_, said) in documented().items() if re.search(r", by `|by `state`", said)} == {
        name for name, spec in PUBLISHED.items() if spec.label
    }
    for name, spec in PUBLISHED.items():
        assert not spec.label or f"`{spec.label}`" in documented()[name][1]


def test_other_places_name_only_what_is_published() -> None:
    said = set(re.findall(r"\bautoglm_[a-z0-9_]*[a-z0-9]\b", " ".join(PAGES.values())))
    named = {*PUBLISHED, *(name.removesuffix("_total") for name in PUBLISHED), "autoglm_engine", "autoglm_triton"}
    assert said <= named


def test_the_dashboard_shows_load_and_the_measures_of_whole_requests() -> None:
    panels = json.loads((ROOT / "deploy" / "monitoring" / "grafana-dashboard.json").read_text())["panels"]
    asked = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    for name in ("waiting", "kv_cache_usage", "request_queue_time_seconds", "e2e_request_latency_seconds"):
        assert f"autoglm_{name}" in asked
    for name in ("request_prompt_tokens", "request_generation_tokens"):
        assert f"autoglm_{name}_bucket" in asked
