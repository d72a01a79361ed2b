"""Precision and recall over the threshold, as one SVG that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 780, 360, 50, 40, 210, 40
_STYLE = (
    "text{font:13px sans-serif;fill:#333}.axis{stroke:#999}.grid{stroke:#ddd}.default{stroke:#c33;stroke-dasharray:4 3}"
    ".curve{fill:none;stroke-width:2}.guarded{stroke:#1a7f37}.bare{stroke:#888}.recall{stroke-dasharray:6 4}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}}"
)


@dataclass(frozen=True, slots=True)
class Curve:
    """`points`: (threshold, share); None where there is nothing to divide by."""

    name: str
    points: tuple[tuple[float, float | None], ...]
    is_guarded: bool
    is_precision: bool


def curves_svg(title: str, curves: Sequence[Curve], default: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><style>{_STYLE}</style>'
    )
    frame = "".join(_level(share / 4) for share in range(5)) + "".join(_tick(0.5 + n / 10) for n in range(6))
    mark = f'<path class="default" d="M{_x(default)} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
    lines = "".join(_curve(curve) + _legend(number, curve) for number, curve in enumerate(curves))
    return (
        f'{head}<text x="{_LEFT}" y="20">{escape(title)}; the line marks the default '
        f"threshold</text>{frame}{mark}{lines}</svg>\n"
    )


def _x(threshold: float) -> float:
    return round(_LEFT + (threshold - 0.5) * 2 * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _level(share: float) -> str:
    line = f'<path class="grid" d="M{_LEFT} {_y(share)}H{_WIDTH - _RIGHT}"/>'
    return f'{line}<text x="{_LEFT - 8}" y="{_y(share) + 4}" text-anchor="end">{share:g}</text>'


def _tick(threshold: float) -> str:
    return f'<text x="{_x(threshold)}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{threshold:.1f}</text>'


def _curve(curve: Curve) -> str:
    points = " ".join(f"{_x(threshold)},{_y(share)}" for threshold, share in curve.points if share is not None)
    return f'<polyline class="{_classes(curve)}" points="{points}"/>'


def _legend(number: int, curve: Curve) -> str:
    y = _TOP + 20 + 22 * number
    line = f'<path class="{_classes(curve)}" d="M{_WIDTH - _RIGHT + 12} {y}h26"/>'
    return f'{line}<text x="{_WIDTH - _RIGHT + 44}" y="{y + 4}">{escape(curve.name)}</text>'


def _classes(curve: Curve) -> str:
    return f"curve {'guarded' if curve.is_guarded else 'bare'}{'' if curve.is_precision else ' recall'}"
