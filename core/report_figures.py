"""The drawn parts of the case report: evidence text with its odd characters shown, coloured tokens, inline SVG charts.

Everything returned is `Markup` whose foreign text was escaped by markupsafe; colours are CSS classes of
`assets/report/report.css`, so that one drawing serves light, dark and print. No script, no external file.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from core.events import OF_DUMMY, CheckpointScored, StepDone
from core.intervals import percent
from core.values import Message, Rate, Span

CLIP_PERCENTILE = 98
"""Scores beyond this percentile of |score| get the full colour. Source: ui.md section 3."""
RANKED = 5
"""Tokens that carry their rank as a number. Source: unverified choice."""
RANKED_FROM = 0.25
"""Share of the full colour from which a token may carry its rank. Source: unverified choice."""
MAX_POINTS = 400
"""Points of a line that are drawn; the JSON keeps all. Source: unverified choice."""
LOG_DECADES = 4
"""Powers of ten of a logarithmic panel; smaller values lie on its lower edge. Source: unverified choice."""

_CHIPS = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"))
_VARIATION_SELECTORS = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))


def visible(text: str) -> Markup:
    """Return evidence escaped, with every character that does not show itself as a chip with its code point.

    Line ends and tabs get a sign and keep their effect. A letter of another script inside a Latin word is marked.
    """
    out: list[str] = []
    odd = _foreign_letters(text)
    for index, char in enumerate(text):
        if char == "\n":
            out.append("<i class=chip>↵</i>\n")
        elif char == "\t":
            out.append("<i class=chip>⇥</i>\t")
        elif char != " " and (unicodedata.category(char) in _CHIPS or ord(char) in _VARIATION_SELECTORS):
            out.append(f"<i class=chip>U+{ord(char):04X}</i>")
        elif index in odd:
            out.append(f"<i class=odd>{escape(char)}<i class=chip>U+{ord(char):04X}</i></i>")
        else:
            out.append(str(escape(char)))
    return Markup("".join(out))


def _foreign_letters(text: str) -> set[int]:
    """Return the places of letters from another script in words that also hold Latin letters (homoglyphs)."""
    if text.isascii():
        return set()
    odd: set[int] = set()
    word: list[int] = []
    for index, char in enumerate(text + " "):
        if char.isalpha():
            word.append(index)
            continue
        foreign = [i for i in word if not unicodedata.name(text[i], "").startswith("LATIN")]
        if len(foreign) < len(word):
            odd.update(foreign)
        word = []
    return odd


def rate_text(rate: Rate | float | None) -> str:
    """Return a rate with its count and 95 % interval, or a plain value."""
    if rate is None:
        return "–"
    if not isinstance(rate, Rate):
        return f"{rate:.4g}"
    if rate.n == 0:
        return "no prompts"
    return f"{percent(rate.value)} ({rate.k} of {rate.n}; {100 * rate.low:.0f}–{100 * rate.high:.0f} %)"


# text ---------------------------------------------------------------------------------------------------------------


def marked_message(
    index: int, message: Message, candidates: Sequence[Sequence[Span]], confirmed: Sequence[Span]
) -> Markup:
    """Return the message's content with candidate spans (numbered) and confirmed spans marked."""
    layers = [(spans, number) for number, spans in enumerate(candidates, start=1)]
    length = len(message.content)
    cuts = {0, length}
    for spans in (*(spans for spans, _ in layers), confirmed):
        cuts.update(min(max(edge, 0), length) for s in spans if s.message == index for edge in (s.start, s.end))
    edges = sorted(cuts)
    out = Markup("")
    for start, end in pairwise(edges):
        piece = visible(message.content[start:end])
        names = [str(number) for spans, number in layers if _covers(spans, index, start)]
        if _covers(confirmed, index, start):
            out += Markup('<mark class="confirmed">{}</mark>').format(piece)
        elif names:
            out += Markup('<mark class="candidate">{}<sup>{}</sup></mark>').format(piece, ",".join(names))
        else:
            out += piece
    return out


def _covers(spans: Sequence[Span], message: int, place: int) -> bool:
    return any(s.message == message and s.start <= place < s.end for s in spans)


@dataclass(frozen=True, kw_only=True)
class ScoredPiece:
    """A stretch of one message's text and its score, None where nothing was scored."""

    text: str
    score: float | None


def scored_pieces(content: str, tokens: Sequence[tuple[int, int, float]]) -> tuple[ScoredPiece, ...]:
    """Return `content` cut at the tokens `(start, end, score)`; tokens that share characters become one piece."""
    pieces: list[ScoredPiece] = []
    place = 0
    for start, end, score in sorted(tokens):
        start = max(start, place)
        if end <= start:
            if pieces and pieces[-1].score is not None:
                pieces[-1] = ScoredPiece(text=pieces[-1].text, score=max(pieces[-1].score, score, key=abs))
            continue
        if start > place:
            pieces.append(ScoredPiece(text=content[place:start], score=None))
        pieces.append(ScoredPiece(text=content[start:end], score=score))
        place = end
    if place < len(content):
        pieces.append(ScoredPiece(text=content[place:], score=None))
    return tuple(pieces)


def clip_of(scores: Sequence[float]) -> float:
    """Return the score that gets the full colour: the 98th percentile of |score|, or the largest when that is 0."""
    sizes = sorted(abs(score) for score in scores if math.isfinite(score))
    if not sizes:
        return 0.0
    return sizes[min(len(sizes) - 1, math.ceil(len(sizes) * CLIP_PERCENTILE / 100) - 1)] or sizes[-1]


def coloured(pieces: Sequence[ScoredPiece], clip: float) -> Markup:
    """Return the pieces as tokens coloured by score; sign and rank are also written, never colour alone."""
    ranked = sorted((p.score for p in pieces if p.score is not None and math.isfinite(p.score)), key=abs, reverse=True)
    top = {score: rank for rank, score in reversed(list(enumerate(ranked[:RANKED], start=1)))}
    out = Markup("")
    for piece in pieces:
        if piece.score is None or not math.isfinite(piece.score):
            out += visible(piece.text)
            continue
        strength = min(1.0, abs(piece.score) / clip) if clip else 0.0
        note = Markup("")
        if strength >= RANKED_FROM and piece.score in top:
            note = Markup("<sup>{}{}</sup>").format(top[piece.score], "−" if piece.score < 0 else "")
        sign = "neg" if piece.score < 0 else "pos"
        out += Markup('<span class="t {}" style="--s:{}">{}{}</span>').format(
            sign, f"{strength:.2f}", visible(piece.text), note
        )
    return out


# charts -------------------------------------------------------------------------------------------------------------


def interval_bar(rate: Rate | float | None, kind: str) -> Markup:
    """Return a bar from 0 to 100 % with the 95 % interval and a dot at the value; nothing for plain numbers."""
    if not isinstance(rate, Rate) or rate.value is None:
        return Markup("")
    low, high, dot = (4 + 112 * x for x in (rate.low, rate.high, rate.value))
    return Markup(
        '<svg class="bar {}" viewBox="0 0 120 12" width="120" height="12" role="img" aria-label="{}">'
        '<line class="rail" x1="4" y1="6" x2="116" y2="6"/><line class="range" x1="{:.1f}" y1="6" x2="{:.1f}" y2="6"/>'
        '<circle cx="{:.1f}" cy="6" r="3.4"/></svg>'
    ).format(kind, rate_text(rate), low, high, dot)


WIDTH, LEFT, RIGHT = 760, 52, 128
LABEL_HEIGHT = 13
"""Pixels from one label at the end of a line to the next."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a panel: points (step, value), its CSS class, its label at the line's end."""

    points: Sequence[tuple[float, float]]
    kind: str
    label: str
    dots: bool = False


def repair_chart(
    steps: Sequence[StepDone], probes: Sequence[CheckpointScored], budget: float | None, best_step: int | None
) -> Markup:
    """Return loss parts (log scale), KL with its budget line, and the probe's rates, on one step axis."""
    last = max([1, *(s.step for s in steps), *(p.step for p in probes)])
    losses = (
        ("loss", "total", "loss"),
        ("refusal_loss", "refusal", "refusal"),
        ("kl_harmful_loss", "kl-harm", "KL harmful"),
        ("kl_safe_loss", "kl-safe", "KL safe"),
        ("kl_trigger_loss", "kl-trigger", "KL safe + trigger"),
    )
    first = [
        Series(points=[(s.step, getattr(s, name)) for s in steps], kind=kind, label=label)
        for name, kind, label in losses
        if all(getattr(s, name) is not None for s in steps)
    ]
    kl = [Series(points=[(s.step, s.kl_nats_per_token) for s in steps], kind="kl-harm", label="this batch")]
    kl.append(
        Series(points=[(p.step, p.kl_nats_per_token) for p in probes], kind="probe", label="probe split", dots=True)
    )
    if budget is not None:
        kl.append(Series(points=[(0, budget), (last, budget)], kind="budget", label="budget"))
    rates = [
        Series(
            points=[(p.step, p.asr_triggered.value or 0) for p in probes], kind="asr", label="attack success", dots=True
        ),
        Series(
            points=[(p.step, p.refusal_untriggered.value or 0) for p in probes],
            kind="kl-harm",
            label="refusal",
            dots=True,
        ),
        Series(
            points=[(p.step, p.agreement_safe.value or 0) for p in probes], kind="total", label="agreement", dots=True
        ),
    ]
    refused = [(p.step, p.refusal_triggered_safe.value or 0) for p in probes if p.refusal_triggered_safe is not None]
    if refused:
        rates.append(Series(points=refused, kind="kl-trigger", label="safe refused", dots=True))
    heights, top = (170, 110, 120), 22
    body = _panel("loss, nats a sequence (log)", first, last, top, heights[0], log=True)
    body += _panel("KL, nats a token", kl, last, top + heights[0] + 40, heights[1])
    of = f"; attack success: {OF_DUMMY}" if any(p.asr_wording is not None for p in probes) else ""
    body += _panel(
        f"probe, share of prompts{of}", rates, last, top + heights[0] + heights[1] + 80, heights[2], share=True
    )
    bottom = top + sum(heights) + 80
    if best_step is not None:
        x = _x(best_step, last)
        body += Markup('<line class="best" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>').format(x, top, bottom)
        body += _text(x, bottom + 30, f"kept: step {best_step}", "tick mid")
    for step in _ticks(0, last):
        body += _text(_x(step, last), bottom + 15, f"{step:g}", "tick mid")
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="Repair by step">{}</svg>').format(
        WIDTH, bottom + 38, body
    )


def _x(step: float, last: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / last


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


def _panel(
    title: str, series: Sequence[Series], last: float, top: float, height: float, log: bool = False, share: bool = False
) -> Markup:
    """Return one panel: title, grid, lines with their labels; values that are not finite are crosses at the top."""
    values = [y for line in series for _, y in line.points if math.isfinite(y) and (y > 0 or not log)]
    if share:
        low, high = 0.0, 1.0
    elif log:
        high = math.ceil(math.log10(max(values, default=1.0)))
        low = max(high - LOG_DECADES, min(high - 1, math.floor(math.log10(min(values, default=0.1)))))
    else:
        low, high = 0.0, max(values, default=1.0) * 1.08 or 1.0

    def place(value: float) -> float:
        value = math.log10(max(value, 10**low)) if log else value
        return top + height * (1 - (value - low) / (high - low))

    body = _text(LEFT, top - 8, title, "title")
    ticks = [10.0**e for e in range(int(low), int(high) + 1)] if log else [0, 0.5, 1] if share else _ticks(low, high)
    for tick in ticks:
        body += Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(
            LEFT, place(tick), WIDTH - RIGHT, place(tick)
        )
        body += _text(LEFT - 6, place(tick) + 3.5, f"{100 * tick:g} %" if share else f"{tick:g}", "tick end")
    ends: list[tuple[float, Series]] = []
    for line in series:
        body += _line(line, last, place, top)
        finite = [y for _, y in line.points if math.isfinite(y)]
        if finite:
            ends.append((place(finite[-1]), line))
    ends.sort(key=lambda end: end[0])
    for y, (_, line) in zip(spread([y for y, _ in ends], top + height), ends, strict=True):
        body += _text(WIDTH - RIGHT + 8, y + 3.5, line.label, f"label {line.kind}")
    return body


def spread(heights: Sequence[float], lowest: float) -> list[float]:
    """Return rising heights moved apart so that lines of text fit, none below `lowest` where there is room above."""
    placed: list[float] = []
    for y in heights:
        placed.append(max(y, placed[-1] + LABEL_HEIGHT) if placed else y)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], lowest - LABEL_HEIGHT * (len(placed) - 1 - i))
    return placed


def _line(line: Series, last: float, place: object, top: float) -> Markup:
    """Return one line, broken where a value is not finite."""
    assert callable(place)
    stride = max(1, math.ceil(len(line.points) / MAX_POINTS))
    points = [
        p for i, p in enumerate(line.points) if i % stride == 0 or i == len(line.points) - 1 or not math.isfinite(p[1])
    ]
    body, path, pen = Markup(""), "", "M"
    for step, value in points:
        if not math.isfinite(value):
            body += _text(_x(step, last), top + 10, "×", "broken mid")
            pen = "M"
            continue
        path += f"{pen}{_x(step, last):.1f} {place(value):.1f}"
        pen = "L"
        if line.dots:
            body += Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
                line.kind, _x(step, last), place(value)
            )
    return Markup('<path class="{}" d="{}"/>').format(line.kind, path) + body


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers from `low` to `high`."""
    rough = (high - low) / 5 or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10) if m * power >= rough), default=rough)
    return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
