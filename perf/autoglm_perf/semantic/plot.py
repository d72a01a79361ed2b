"""Precision and recall over the threshold, as one SVG that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoglm_cli.svg_elements import NAMESPACE, Axis, element, line, picture, polyline, text

_WIDTH, _HEIGHT = 780, 360
_LEFT, _SIDE, _TOP, _FOOT = 50, 570, 40, 320  # the edges of the plot
_THRESHOLDS, _SHARES = Axis(0.5, 1.0, _LEFT, _SIDE), Axis(0.0, 1.0, _FOOT, _TOP)
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
    heading = text(_LEFT, 20, f"{title}; the line marks the default threshold")
    levels = "".join(_level(share / 4) for share in range(5))
    ticks = "".join(_tick(0.5 + n / 10) for n in range(6))
    mark = line((_THRESHOLDS.at(default), _TOP), (_THRESHOLDS.at(default), _FOOT), class_="default")
    drawn = "".join(_curve(curve) + _legend(number, curve) for number, curve in enumerate(curves))
    body = element("style", _STYLE) + heading + levels + ticks + mark + drawn
    return picture(_WIDTH, _HEIGHT, body, xmlns=NAMESPACE, role="img") + "\n"


def _level(share: float) -> str:
    y = _SHARES.at(share)
    number = text(_LEFT - 8, y + 4, f"{share:g}", text_anchor="end")
    return line((_LEFT, y), (_SIDE, y), class_="grid") + number


def _tick(threshold: float) -> str:
    return text(_THRESHOLDS.at(threshold), _FOOT + 20, f"{threshold:.1f}", text_anchor="middle")


def _curve(curve: Curve) -> str:
    points = [(_THRESHOLDS.at(threshold), _SHARES.at(share)) for threshold, share in curve.points if share is not None]
    return polyline(points, class_=_classes(curve))


def _legend(number: int, curve: Curve) -> str:
    y = _TOP + 20 + 22 * number
    sample = line((_SIDE + 12, y), (_SIDE + 38, y), class_=_classes(curve))
    return sample + text(_SIDE + 44, y + 4, curve.name)


def _classes(curve: Curve) -> str:
    return f"curve {'guarded' if curve.is_guarded else 'bare'}{'' if curve.is_precision else ' recall'}"
