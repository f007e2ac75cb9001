"""Charts of inline SVG and boxes: lines, histograms, intervals, bars, shares, graphs. They take their colours from the page's style sheet.

Each has a size of its own and scales with its place. What is drawn is said by the modules of the sections.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlops_tasks.report.markup import Child, Markup, element

_WIDTH, _HEIGHT = 520.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 14.0, 40.0


@dataclass(frozen=True)
class Series:
    """A named line."""

    label: str
    points: Sequence[tuple[float, float]]
    emphasis: float = 1.0
    """Opacity: lines of one family differ by it, in the dark too."""
    is_dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    """An area behind the line: x, lower and upper end."""
    kind: str | None = None
    """Class in the style sheet, such as `baseline`; None: the accent colour."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, if it has one."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    """Lower and upper end."""
    kind: str = "candidate"
    """Class in the style sheet: candidate or baseline."""


@dataclass(frozen=True)
class Bar:
    """A value as a bar from zero."""

    label: str
    value: float
    detail: str
    """What stands beside it."""


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, about `count` of them.

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(series: Sequence[Series], *, x_label: str, y_label: str, title: str, has_legend: bool = True) -> Markup:
    """Lines over a common x axis, with a legend below."""
    points = [(x, y) for one in series for x, *ys in (*one.points, *one.band) for y in ys]
    x = _Scale(min(p[0] for p in points), max(p[0] for p in points), _LEFT, _WIDTH - _RIGHT)
    bottom, top = min(p[1] for p in points), max(p[1] for p in points)
    margin = 0.06 * (top - bottom or abs(top) or 1.0)
    y = _Scale(max(0.0, bottom - margin) if bottom >= 0 else bottom - margin, top + margin, _HEIGHT - _BOTTOM, _TOP)
    drawn = [_line(one, x, y) for one in series]
    return element(
        "figure",
        element("figcaption", title, element("small", y_label) if y_label else None),
        _svg(title, _axes(x, y, x_label), drawn),
        _legend(series) if has_legend and len(series) > 1 else None,
    )


def _line(series: Series, x: _Scale, y: _Scale) -> Markup:
    path = _path(series.points, x, y)
    shared = {"class_": _class_of(series), "opacity": series.emphasis}
    if len(series.points) == 1:
        return element(
            "circle",
            cx=x(series.points[0][0]),
            cy=y(series.points[0][1]),
            r=3,
            class_=" ".join(filter(None, ("dot", series.kind))),
            opacity=series.emphasis,
        )
    edge = [(a, low) for a, low, _ in series.band] + [(a, high) for a, _, high in reversed(series.band)]
    band = element("polygon", points=_path(edge, x, y), class_="band") if edge else None
    return element("g", band, element("polyline", points=path, class_="line"), **shared)


def _path(points: Sequence[tuple[float, float]], x: _Scale, y: _Scale) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)


def _class_of(series: Series) -> str | None:
    return " ".join(filter(None, ("dashed" if series.is_dashed else None, series.kind))) or None


def _legend(series: Iterable[Series]) -> Markup:
    keys = (
        element("li", element("i", class_=_class_of(one), style=f"opacity:{one.emphasis:g}"), one.label)
        for one in series
    )
    return element("ul", keys, class_="legend")


def _axes(x: _Scale, y: _Scale, x_label: str) -> Markup:
    rows = [
        [
            element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(value), y2=y(value), class_="grid"),
            element("text", number(value), x=_LEFT - 8, y=y(value) + 4, class_="tick", text_anchor="end"),
        ]
        for value in ticks(y.low, y.high, 4)
    ]
    columns = [
        element("text", number(value), x=x(value), y=_HEIGHT - _BOTTOM + 18, class_="tick", text_anchor="middle")
        for value in ticks(x.low, x.high, 5)
    ]
    labels = [
        element("text", x_label, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, class_="axis", text_anchor="middle"),
    ]
    return element("g", rows, columns, labels)


def histogram(
    edges: Sequence[float], counts: Sequence[int], *, x_label: str, y_label: str, title: str, mark: float | None = None
) -> Markup:
    """Counts between edges; `mark` is a value with a line of its own."""
    x = _Scale(edges[0], edges[-1], _LEFT, _WIDTH - _RIGHT)
    y = _Scale(0, max(max(counts, default=1), 1) * 1.05, _HEIGHT - _BOTTOM, _TOP)
    bars = [
        element(
            "rect",
            x=x(low) + 0.5,
            y=y(count),
            width=max(x(high) - x(low) - 1, 0.5),
            height=y(0) - y(count),
            class_="bar",
            rx=1,
        )
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    line = None if mark is None else element("line", x1=x(mark), x2=x(mark), y1=_TOP, y2=y(0), class_="mark")
    return element(
        "figure",
        element("figcaption", title, element("small", y_label) if y_label else None),
        _svg(title, _axes(x, y, x_label), bars, line),
    )


def estimates(
    rows: Sequence[Estimate], *, low: float, high: float, mark: tuple[float, str] | None = None, is_signed: bool = False
) -> Markup:
    """Dots with whiskers, one below the other on a common axis; values are shares, shown times 100.

    Boxes placed in per cent, not SVG, so that labels keep their size on a phone.

    Args:
        rows: top to bottom.
        low: where the axis starts.
        high: where it ends.
        mark: a threshold and its name.
        is_signed: show + too; for differences.
    """
    x = _Scale(low, high, 0.0, 100.0)
    places = ticks(low, high, 6)
    behind = [element("i", class_="g", style=f"left:{x(place):.2f}%") for place in places]
    if mark:
        behind.append(element("i", class_="m", style=f"left:{x(mark[0]):.2f}%"))
    labels = [element("span", f"{100 * place:g}", style=f"left:{x(place):.2f}%") for place in places]
    named = mark and element("span", mark[1], style=f"left:{x(mark[0]):.2f}%")
    return element(
        "div",
        [element("span"), element("span", named, class_="axis"), element("span")] if mark else None,
        [_estimate(row, x, behind, is_signed=is_signed) for row in rows],
        [element("span"), element("span", labels, class_="axis"), element("span")],
        class_="estimates",
    )


def _estimate(row: Estimate, x: _Scale, behind: Sequence[Markup], *, is_signed: bool) -> list[Markup]:
    whisker = None
    if row.interval is not None:
        low, high = (min(max(end, x.low), x.high) for end in row.interval)
        whisker = element("i", class_="whisker", style=f"left:{x(low):.2f}%;width:{x(high) - x(low):.2f}%")
    dot = element("i", class_="dot", style=f"left:{x(row.value):.2f}%")
    return [
        element("span", row.label, class_="label"),
        element("span", behind, whisker, dot, class_=f"track {row.kind}"),
        element("b", f"{100 * row.value:+.1f}" if is_signed else f"{100 * row.value:.1f}%"),
    ]


def bars(rows: Sequence[Bar], *, mark: float | None = None) -> Markup:
    """Bars one below the other on a common axis from zero; boxes, as `estimates` are; `mark` is a value with a line of its own."""
    x = _Scale(0.0, max([row.value for row in rows] + ([mark] if mark else [])) or 1.0, 0.0, 100.0)
    line = None if mark is None else element("i", class_="m", style=f"left:{x(mark):.2f}%")
    return element(
        "div",
        [
            [
                element("span", row.label, class_="label"),
                element("span", element("i", class_="bar", style=f"width:{x(row.value):.2f}%"), line, class_="track"),
                element("b", row.detail),
            ]
            for row in rows
        ],
        class_="estimates",
    )


_NODE_WIDTH, _NODE_HEIGHT, _GAP, _ROW = 156.0, 34.0, 14.0, 66.0


def graph(labels: Mapping[str, str], parents: Mapping[str, Iterable[str]], *, title: str) -> Markup:
    """A directed graph without cycles, from what is made of nothing (top) to what all the rest leads to.

    Args:
        labels: by node, what stands in its box.
        parents: by node, the nodes that lead to it; a line that a longer way says too is not drawn.
    """
    parents = nearest(parents)
    rows = layers(parents)
    middles = {
        node: (_WIDTH / 2 + (place - (len(row) - 1) / 2) * (_NODE_WIDTH + _GAP), _NODE_HEIGHT / 2 + 2 + depth * _ROW)
        for depth, row in enumerate(rows)
        for place, node in enumerate(row)
    }
    edges = [_edge(middles[above], middles[node]) for node, found in parents.items() for above in found]
    boxes = [_node(labels[node], *middle) for node, middle in middles.items()]
    height = (len(rows) - 1) * _ROW + _NODE_HEIGHT + 4
    return element("figure", element("figcaption", title), _svg(title, edges, boxes, height=height), class_="graph")


def nearest(parents: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """By node, the parents that are not a parent's ancestor too (the transitive reduction).

    >>> nearest({"data": [], "train": ["data"], "judge": ["data", "train"]})
    {'data': [], 'train': ['data'], 'judge': ['train']}
    """

    def ancestors(node: str) -> set[str]:
        return {one for above in parents[node] for one in (above, *ancestors(above))}

    return {
        node: [one for one in above if not any(one in ancestors(other) for other in above)]
        for node, above in parents.items()
    }


def layers(parents: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Nodes by the length of the longest way to them; within a layer each near the middle of its parents.

    What has no parents stands close above its first child.

    >>> layers({"data": [], "model": [], "score": ["data"], "train": ["model", "score"]})
    [['data'], ['model', 'score'], ['train']]
    """
    depths: dict[str, int] = {}

    def depth(node: str) -> int:
        if node not in depths:
            depths[node] = max((depth(above) + 1 for above in parents[node]), default=0)
        return depths[node]

    rows: list[list[str]] = [[] for _ in range(max(map(depth, parents), default=-1) + 1)]
    for node in parents:
        below = [depths[child] for child, above in parents.items() if node in above]
        rows[depths[node] if depths[node] or not below else min(below) - 1].append(node)
    places: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda node: _mean([places[above] for above in parents[node]]))
        places |= {node: place - (len(row) - 1) / 2 for place, node in enumerate(row)}
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    (x1, y1), (x2, y2) = (start[0], start[1] + _NODE_HEIGHT / 2), (end[0], end[1] - _NODE_HEIGHT / 2)
    bend = (y2 - y1) / 2
    return element("path", d=f"M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}", class_="edge")


def _node(label: str, x: float, y: float) -> Markup:
    box = element(
        "rect",
        x=x - _NODE_WIDTH / 2,
        y=y - _NODE_HEIGHT / 2,
        width=_NODE_WIDTH,
        height=_NODE_HEIGHT,
        rx=8,
        class_="node",
    )
    return element("g", box, element("text", label, x=x, y=y + 5, text_anchor="middle", class_="label"))


def shares(parts: Sequence[tuple[str, int]]) -> Markup:
    """One bar cut by counts; each part's class is its name."""
    total = sum(count for _, count in parts) or 1
    return element(
        "div",
        [
            element("span", class_=f"v-{name}", style=f"flex-grow:{count}", title=f"{name}: {count} of {total}")
            for name, count in parts
            if count
        ],
        class_="shares",
    )


def number(value: float) -> str:
    """A tick's label: thousands as k, no needless digits."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _svg(title: str, *children: Child, height: float = _HEIGHT) -> Markup:
    return element("svg", *children, viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img", aria_label=title)


# Many trials


@dataclass(frozen=True)
class Axis:
    """A setting, or what trials came to, from one end to the other."""

    label: str
    marks: Sequence[tuple[float, str]]
    """Places from 0 to 1, and what stands there."""


@dataclass(frozen=True)
class Dot:
    """A trial somewhere."""

    x: float
    """From 0 to 1 on its axis."""
    y: float
    kind: str
    """Class in the style sheet: complete, pruned, fail or best."""
    detail: str
    """Told when it is pointed at."""


def scatter(dots: Sequence[Dot], x: Axis, y: Axis, *, title: str, steps: Sequence[tuple[float, float]] = ()) -> Markup:
    """Dots on two axes, and perhaps a line in steps."""
    across, up = _Scale(0, 1, _LEFT, _WIDTH - _RIGHT), _Scale(0, 1, _HEIGHT - _BOTTOM, _TOP)
    path = "".join(
        f"M{across(a):.1f} {up(b):.1f}" if place == 0 else f"H{across(a):.1f}V{up(b):.1f}"
        for place, (a, b) in enumerate(steps)
    )
    rows = [
        [
            element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=up(place), y2=up(place), class_="grid"),
            element("text", text, x=_LEFT - 8, y=up(place) + 4, class_="tick", text_anchor="end"),
        ]
        for place, text in y.marks
    ]
    columns = [
        element("text", text, x=across(place), y=_HEIGHT - _BOTTOM + 18, class_="tick", text_anchor="middle")
        for place, text in x.marks
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    label = element("text", x.label, x=middle, y=_HEIGHT - 4, class_="axis", text_anchor="middle")
    marks = [_dot(across(one.x), up(one.y), one) for one in dots]
    line = element("path", d=path, class_="line") if path else None
    return element(
        "figure",
        element("figcaption", title, element("small", y.label)),
        _svg(title, rows, columns, label, line, marks),
    )


def _dot(x: float, y: float, dot: Dot) -> Markup:
    radius = 6 if dot.kind == "best" else 4
    return element("circle", element("title", dot.detail), cx=x, cy=y, r=radius, class_=f"trial {dot.kind}")


@dataclass(frozen=True)
class Path:
    """A trial on several axes."""

    places: Sequence[float | None]
    """From 0 to 1 on each axis; None: it has no such setting."""
    emphasis: float
    is_best: bool


_TOP_LABEL = 34.0


def parallel(axes: Sequence[Axis], paths: Sequence[Path], *, title: str) -> Markup:
    """Axes side by side, and a line through all of them for each trial."""
    margin = 60.0
    across = _Scale(0, max(len(axes) - 1, 1), margin, _WIDTH - margin)
    up = _Scale(0, 1, _HEIGHT - 24, _TOP_LABEL)
    drawn = [
        [
            element("line", x1=across(place), x2=across(place), y1=up(0), y2=up(1), class_="grid"),
            element(
                "text",
                axis.label,
                x=across(place),
                y=12 + 12 * (place % 2),
                class_="tick",
                text_anchor="middle",
            ),
            [
                element("text", text, x=across(place) + 5, y=up(at) + 4, class_="tick small", text_anchor="start")
                for at, text in axis.marks
            ],
        ]
        for place, axis in enumerate(axes)
    ]
    ordered = sorted(paths, key=lambda path: (path.is_best, path.emphasis))
    lines = [
        element(
            "polyline",
            points=" ".join(
                f"{across(place):.1f},{up(at):.1f}" for place, at in enumerate(path.places) if at is not None
            ),
            class_="path best" if path.is_best else "path",
            opacity=1.0 if path.is_best else path.emphasis,
        )
        for path in ordered
    ]
    return element("figure", element("figcaption", title), _svg(title, lines, drawn), class_="graph")


@dataclass(frozen=True)
class Span:
    """A trial in time."""

    row: str
    """Who worked on it."""
    start: float
    end: float
    kind: str
    """Class in the style sheet: complete, pruned, fail, running or best."""
    detail: str
    """Told when it is pointed at."""


_SPAN_HEIGHT = 22.0


def timeline(spans: Sequence[Span], *, unit: str, title: str) -> Markup:
    """Spans by row, from the first start to the last end."""
    rows = list(dict.fromkeys(span.row for span in spans))
    end = max((span.end for span in spans), default=1.0)
    across, left = _Scale(0, end, 110.0, _WIDTH - _RIGHT), 104.0
    bottom = len(rows) * _SPAN_HEIGHT + 8
    labels = [
        element("text", row, x=left, y=place * _SPAN_HEIGHT + 17, class_="tick", text_anchor="end")
        for place, row in enumerate(rows)
    ]
    bars = [
        element(
            "rect",
            element("title", span.detail),
            x=across(span.start),
            y=rows.index(span.row) * _SPAN_HEIGHT + 5,
            width=max(across(span.end) - across(span.start) - 0.6, 1.0),
            height=_SPAN_HEIGHT - 8,
            rx=2,
            class_=f"trial {span.kind}",
        )
        for span in spans
    ]
    marks = [
        element("text", number(value), x=across(value), y=bottom + 14, class_="tick", text_anchor="middle")
        for value in ticks(0, end, 6)
    ]
    return element(
        "figure",
        element("figcaption", title, element("small", unit)),
        _svg(title, labels, bars, marks, height=bottom + 22),
        class_="graph",
    )
