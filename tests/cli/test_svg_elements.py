"""The elements that all pictures are drawn with."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from autoglm_cli.svg_elements import NAMESPACE, Axis, picture, polyline, rectangle, text


@pytest.mark.parametrize(("value", "place"), [(0.0, 300.0), (5.0, 200.0), (10.0, 100.0), (11.0, 100.0)])
def test_an_axis_may_go_up_and_ends_at_its_highest_value(value: float, place: float) -> None:
    assert Axis(0, 10, 300, 100).at(value) == place


def test_names_of_others_are_text_wherever_they_stand() -> None:
    hostile = "<b>\"&'"
    drawn = text(1, 2.25, hostile) + rectangle(0, 0, 1, 1, title=hostile) + polyline([(0, 1)], class_=hostile)
    root = ElementTree.fromstring(picture(10, 10, drawn, xmlns=NAMESPACE, aria_label=hostile))
    words, box, curve = root
    assert words.text == box[0].text == curve.attrib["class"] == root.attrib["aria-label"] == hostile
    assert words.attrib == {"x": "1", "y": "2.2"}
