"""The two still plots of tokens: score by position, and the 2-D picture. Pure, like `figures`.

Both are drawn by one function. A label goes above, below or beside its point, wherever it covers neither a point nor another
label nor the frame, the strongest tokens first; where there is no room the point stays bare and its text is in the hover.
"""

import html
from collections.abc import Iterable, Mapping, Sequence

from core.values import LocateResult, Message, OpenResult
from dashboard import wording_locate
from dashboard.figures import Value, finite, layout, shown, token_rows

LABELLED_POINTS = 12
"""Points of a plot that carry their text at most. Source: unverified choice."""
LABEL_LENGTH = 18
"""Characters of a token's text in a plot. Source: unverified choice."""
WIDTH, HEIGHT = 380.0, 176.0
"""Pixels inside the axes of the plots as the page draws them, to tell what covers what; a wider window only leaves more room."""
CHARACTER, LINE, GAP = 7.0, 13.0, 7.0
"""Pixels of a label: a character's width, its height, and how far it stands from its point."""
HEADROOM = 0.12
"""Empty share of the value axis above and below the points, so that labels fit there."""
PLACES = ("top center", "bottom center", "middle right", "middle left")

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def strip(
    opened: OpenResult, located: LocateResult, messages: Sequence[Message] = (), highlight: Iterable[int] = ()
) -> Value:
    """PlotlyView value: score by position in the text, with the cluster boundary."""
    scored = {i: finite(located.scores[i]) for i, use in enumerate(located.scored) if use}
    points = {i: (float(i), score) for i, score in scored.items() if score is not None}
    side, note = _boundary_note(located, points)
    value = _plot(opened, located, messages, points, highlight, note)
    shapes, notes = [], []
    if located.boundary is not None:
        line = {"color": "theme:text", "width": 1, "dash": "dash"}
        where = {"xref": "paper", "x0": 0, "x1": 1, "y0": located.boundary, "y1": located.boundary}
        shapes.append({"type": "line", "line": line, **where})
        place = {
            "xref": "paper",
            "x": int(side == "right"),
            "y": located.boundary,
            "xanchor": side,
            "yanchor": "bottom",
        }
        font = {"size": 11, "color": "theme:muted"}
        notes.append({**place, "showarrow": False, "text": wording_locate.BOUNDARY, "font": font})
    low, high = _extent([y for _, y in points.values()] + [located.boundary or 0.0])
    axes = {
        "xaxis": {
            "title": {"text": wording_locate.POSITION_AXIS},
            "zeroline": False,
            "range": list(_extent([x for x, _ in points.values()])),
        },
        "yaxis": {
            "title": {"text": wording_locate.score_axis(located)},
            "zeroline": located.signed,
            "range": [low, high],
        },
    }
    return value | {
        "layout": layout(shapes=shapes, annotations=notes, **axes),
        "key": f"strip-{located.method}-{located.target.kind}",
        "summary": wording_locate.stand_out(sum(1 for label in located.labels if label == 1)),
    }


def token_map(
    opened: OpenResult, located: LocateResult, messages: Sequence[Message] = (), highlight: Iterable[int] = ()
) -> Value:
    """PlotlyView value: the picture of the scored tokens; clicks and `highlight` link it to the text."""
    points = {p: (float(x), float(y)) for p, (x, y) in zip(located.positions, located.coordinates, strict=True)}
    bare = {"showticklabels": False, "zeroline": False, "showgrid": False, "showline": False, "ticks": ""}
    ranges = [list(_extent([point[axis] for point in points.values()])) for axis in (0, 1)]
    title = {"text": wording_locate.picture(located)}
    made = layout(xaxis={**bare, "title": title, "range": ranges[0]}, yaxis={**bare, "range": ranges[1]})
    made["margin"] = {"l": 24, "r": 24, "t": 24, "b": 28}
    value = _plot(opened, located, messages, points, highlight)
    return value | {
        "data": [*value["data"], *_rings(located, points)],  # type: ignore[misc]
        "layout": made,
        "key": f"map-{located.method}-{located.target.kind}",
        "summary": "" if located.positions else wording_locate.NO_MAP,
    }


def _plot(
    opened: OpenResult,
    located: LocateResult,
    messages: Sequence[Message],
    points: Mapping[int, Point],
    highlight: Iterable[int],
    note: Box | None = None,
) -> Value:
    """Return the traces of the tokens at `points`: those that do not stand out, and those that do, labelled, none over `note`."""
    texts = [str(token["text"]) for token in token_rows(opened, messages)]
    labels = {p: shown(texts[p], LABEL_LENGTH).strip() or "␣" for p in points if located.labels[p] == 1}
    strongest = sorted(labels, key=lambda p: abs(located.scores[p]), reverse=True)[:LABELLED_POINTS]
    places = label_places(points, {p: labels[p] for p in strongest}, note)
    rest = {"size": 7, "color": "theme:muted", "symbol": "circle-open", "line": {"width": 1.5}}
    out = {"size": 10, "color": "theme:accent", "symbol": "circle"}
    data: list[Value] = []
    for marker, members in ((rest, [p for p in points if p not in labels]), (out, [p for p in points if p in labels])):
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "cliponaxis": False,
                "x": [points[p][0] for p in members],
                "y": [points[p][1] for p in members],
                "customdata": members,
                "hovertext": [f"{p} “{html.escape(shown(texts[p], 40))}”  {located.scores[p]:+.4g}" for p in members],
                "hoverinfo": "text",
                "text": [html.escape(labels[p]) if p in places else "" for p in members],
                "textposition": [places.get(p, PLACES[0]) for p in members],
                "textfont": {"size": 11, "color": "theme:text"},
                "marker": marker,
            }
        )
    return {"data": data, "height": 240, "highlight": sorted(highlight)}


def _rings(located: LocateResult, points: Mapping[int, Point]) -> list[Value]:
    """Return the trace that rings what stands out by several methods together, none where nothing does."""
    ringed = [points[p] for p in points if located.adaptive_labels[p] == 1]
    if not ringed:
        return []
    marker = {"size": 17, "color": "theme:text", "symbol": "circle-open", "line": {"width": 1}}
    x, y = zip(*ringed, strict=True)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "cliponaxis": False,
            "x": x,
            "y": y,
            "hoverinfo": "skip",
            "marker": marker,
        }
    ]


def _boundary_note(located: LocateResult, points: Mapping[int, Point]) -> tuple[str, Box | None]:
    """Return the end of the boundary line at which its name covers fewer points, and the name's place there in pixels."""
    if located.boundary is None:
        return "right", None
    width = CHARACTER * len(wording_locate.BOUNDARY)
    bottom = _share(located.boundary, _extent([y for _, y in points.values()])) * HEIGHT
    boxes: dict[str, Box] = {
        "right": (WIDTH - width, bottom, WIDTH, bottom + LINE),
        "left": (0.0, bottom, width, bottom + LINE),
    }
    dots = [_dot(place) for place in _pixels(points).values()]
    side = min(boxes, key=lambda name: sum(_overlap(boxes[name], dot) for dot in dots))
    return side, boxes[side]


def label_places(points: Mapping[int, Point], labels: Mapping[int, str], note: Box | None = None) -> dict[int, str]:
    """Return where each label goes, by Plotly's name, the first label first; one without room is left out.

    `note`: where other text stands already, in pixels.
    """
    at = _pixels(points)
    taken: list[Box] = [] if note is None else [note]
    found: dict[int, str] = {}
    for p, text in labels.items():
        dots = [_dot(where) for other, where in at.items() if other != p]
        for place in PLACES:
            box = _box(at[p], text, place)
            inside = box[1] >= 0 and box[3] <= HEIGHT and box[0] >= -GAP and box[2] <= WIDTH + GAP
            if inside and not any(_overlap(box, other) for other in (*taken, *dots)):
                taken.append(box)
                found[p] = place
                break
    return found


def _pixels(points: Mapping[int, Point]) -> dict[int, Point]:
    """Return the points in pixels from the lower left corner of the plot."""
    across, up = (_extent([point[axis] for point in points.values()]) for axis in (0, 1))
    return {p: (_share(x, across) * WIDTH, _share(y, up) * HEIGHT) for p, (x, y) in points.items()}


def _share(value: float, span: tuple[float, float]) -> float:
    return (value - span[0]) / (span[1] - span[0])


def _dot(at: Point) -> Box:
    return at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4


def _box(at: Point, text: str, place: str) -> Box:
    """Return left, bottom, right, top of a label in pixels."""
    (x, y), width = at, CHARACTER * len(text)
    match place:
        case "top center":
            return x - width / 2, y + GAP, x + width / 2, y + GAP + LINE
        case "bottom center":
            return x - width / 2, y - GAP - LINE, x + width / 2, y - GAP
        case "middle right":
            return x + GAP, y - LINE / 2, x + GAP + width, y + LINE / 2
        case _:
            return x - GAP - width, y - LINE / 2, x - GAP, y + LINE / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _extent(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of an axis, with room for labels; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = HEADROOM * (high - low) or 1.0
    return low - room, high + room
