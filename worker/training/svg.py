"""Two plots as SVG elements: grouped bars, and curves on top of each other.

Elements, not text: what is written into them is escaped where they become text. Each mark has a
title, which a browser shows under the pointer and a screen reader reads.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 12, 14, 40
_TICKS = 4


@dataclass(frozen=True)
class Style:
    """How a series looks: its name, its colour, and how thick its curve is."""

    name: str
    colour: str
    thickness: float = 2.0


@dataclass(frozen=True)
class Bar:
    """A bar; without a value its note stands in its place."""

    style: Style
    value: float | None
    note: str = ""


@dataclass(frozen=True)
class _Frame:
    """Where values are in the plot."""

    low: float
    high: float

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1.0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def bars(
    label: str,
    groups: Mapping[str, Sequence[Bar]],
    tell: Callable[[float], str],
    *,
    base: int = 10,
) -> ET.Element:
    """Groups of bars side by side, from zero.

    Args:
        label: What the plot shows, for those who can't see it.
        groups: Bars by the name of their group, which stands under them.
        tell: A value in words.
        base: Of the powers that `tell` counts in, for round numbers at the ticks.
    """
    values = [bar.value or 0.0 for each in groups.values() for bar in each]
    frame = _Frame(0.0, _nice(max(values, default=0.0), base))
    svg = _plot(label, frame, tell)
    room = (WIDTH - _LEFT - _RIGHT) / len(groups)
    for at, (name, each) in enumerate(groups.items()):
        left = _LEFT + at * room
        width = 0.8 * room / len(each)
        for index, bar in enumerate(each):
            _bar(svg, frame, bar, left + 0.1 * room + index * width, width, tell)
        _text(svg, left + room / 2, HEIGHT - _BOTTOM + 18, name, "middle")
    return svg


def curves(
    label: str, series: Sequence[tuple[Style, Sequence[float]]], tell: Callable[[float], str]
) -> ET.Element:
    """Curves over their steps, from 1, each drawn over those before it."""
    values = [value for _, each in series for value in each]
    margin = 0.05 * (max(values) - min(values)) or 0.5
    frame = _Frame(min(values) - margin, max(values) + margin)
    svg = _plot(label, frame, tell)
    most = max(len(each) for _, each in series)
    span = (WIDTH - _LEFT - _RIGHT) / max(1, most - 1)
    for style, each in series:
        points = " ".join(f"{_LEFT + i * span:.1f},{frame.y(v):.1f}" for i, v in enumerate(each))
        attributes = {"points": points, "fill": "none", "stroke": style.colour}
        line = ET.SubElement(
            svg,
            "polyline",
            {**attributes, "stroke-width": str(style.thickness), "stroke-linejoin": "round"},
        )
        ET.SubElement(line, "title").text = f"{style.name}: {tell(each[0])} to {tell(each[-1])}"
    for step in sorted({1, most}):
        anchor = "start" if step == 1 else "end"
        where = _LEFT + (step - 1) * span
        _text(svg, where, HEIGHT - _BOTTOM + 18, f"step {step}", anchor)
    return svg


def _plot(label: str, frame: _Frame, tell: Callable[[float], str]) -> ET.Element:
    """An empty plot with its ticks and their lines."""
    box = f"0 0 {WIDTH} {HEIGHT}"
    svg = ET.Element("svg", {"viewBox": box, "role": "img", "aria-label": label})
    for at in range(_TICKS + 1):
        value = frame.low + at / _TICKS * (frame.high - frame.low)
        y = f"{frame.y(value):.1f}"
        ends = {"x1": str(_LEFT), "x2": str(WIDTH - _RIGHT), "y1": y, "y2": y}
        ET.SubElement(svg, "line", {**ends, "class": "tick"})
        _text(svg, _LEFT - 6, frame.y(value) + 4, tell(value), "end")
    return svg


def _bar(
    svg: ET.Element, frame: _Frame, bar: Bar, x: float, width: float, tell: Callable[[float], str]
) -> None:
    floor = frame.y(0.0)
    if bar.value is None:
        at = x + width / 2, floor - 6
        turned = {"transform": f"rotate(-90 {at[0] + 4:.1f} {at[1]:.1f})", "fill": bar.style.colour}
        _text(svg, at[0] + 4, at[1], bar.note, "start", **turned)
        return
    top = frame.y(bar.value)
    place = {"x": f"{x:.1f}", "y": f"{top:.1f}", "width": f"{0.92 * width:.1f}"}
    height = f"{max(1.0, floor - top):.1f}"
    rect = ET.SubElement(svg, "rect", {**place, "height": height, "fill": bar.style.colour})
    ET.SubElement(rect, "title").text = f"{bar.style.name}: {tell(bar.value)}"


def _text(svg: ET.Element, x: float, y: float, text: str, anchor: str, **attributes: str) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    ET.SubElement(svg, "text", {**place, **attributes}).text = text


def _nice(most: float, base: int) -> float:
    """The next of 1, 2, 4, 8, 12 and so on times a power of `base`: four ticks part it well."""
    if most <= 0:
        return 1.0
    power = float(base ** math.floor(math.log(most, base)))
    factors = (1, 2, 4, 8, 12, 16, 20, 40, 60, 80, 100, 200, 400, 600, 800, base)
    return next(factor * power for factor in factors if factor * power >= most)
