"""Charts as SVG text: horizontal bars, lines, and stacked histograms. No script, no style from outside.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; a chart never depends on colour alone
where a label can stand beside it. Sizes are in units of the view box; the page scales the whole.
"""

import html
import math

BLUE, RED, GREEN, ORANGE, SKY, PURPLE, BLACK, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#56b4e9",
    "#cc79a7",
    "#333333",
    "#999999",
)
WIDTH = 760
LEFT = 164  # room of labels of rows
RIGHT = 70  # room of the number at a bar's end
ROW = 24
LETTER = 6.6  # mean width of one at the size of the labels


def text(x, y, words, anchor="start", kind=""):
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{html.escape(words)}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def box(x, y, width, height, colour, hint=""):
    title = f"<title>{html.escape(hint)}</title>" if hint else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{max(0, height):.1f}" '
        f'fill="{colour}">{title}</rect>'
    )


def drawing(height, title, parts):
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def tidy(value):
    """A number of an axis: 1,500, 0.25, 1e-05."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6f}".rstrip("0")


def round_step(span, parts):
    """The round number (1, 2 or 5 times a power of ten) that cuts the span into at most so many parts."""
    rough = max(span, 1e-12) / parts
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def ticks(low, high, parts=6):
    step = round_step(high - low, parts)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def legend(entries, x, y):
    """Names beside their colour, in a row that is broken where it would leave the chart. (parts, rows)"""
    parts, left, rows = [], x, 1
    for name, colour in entries:
        width = 22 + LETTER * len(name) + 16
        if left + width > WIDTH and left > x:
            left, rows = x, rows + 1
        parts += [box(left, y + 18 * (rows - 1) - 9, 14, 10, colour), text(left + 20, y + 18 * (rows - 1), name)]
        left += width
    return parts, rows


def across(low, high, top, bottom, scale, label, at=None):
    """Grid, numbers (at the places given, or round ones) and name of a horizontal axis."""
    parts = []
    for tick in at or ticks(low, high):
        parts += [
            line(scale(tick), top, scale(tick), bottom, "grid"),
            text(scale(tick), bottom + 15, tidy(tick), "middle"),
        ]
    return parts + [text((scale(low) + scale(high)) / 2, bottom + 33, label, "middle", "name")]


def bars(rows, title, label, colours, most=None):
    """Stacked horizontal bars. `rows` are (label, {part: value}, text at the end); `colours` {part: colour}, with a
    legend where a bar has several parts. `most` is the end of the axis where it is given by what is shown (100 %)."""
    stacked = any(len(parts) > 1 for _, parts, _ in rows)
    head, lines = legend(colours.items(), LEFT, 14) if stacked else ([], 0)
    top = 18 * lines + 8
    bottom = top + ROW * len(rows)
    high = most or max([sum(parts.values()) for _, parts, _ in rows] + [1e-9])

    def scale(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * value / high

    parts = head + across(0, high, top, bottom, scale, label)
    for i, (name, values, end) in enumerate(rows):
        y, at = top + ROW * i, 0
        parts.append(text(LEFT - 8, y + 16, name, "end"))
        for part, value in values.items():
            if value > 0:
                hint = f"{name}, {part}: {tidy(round(value, 3))}"
                parts.append(box(scale(at), y + 4, scale(at + value) - scale(at), ROW - 8, colours[part], hint))
            at += value
        parts.append(text(scale(at) + 6, y + 16, end))
    return drawing(bottom + 42, title, parts + [line(LEFT, top, LEFT, bottom, "axis")])


def lines(series, title, x_label, y_label, marks=(), from_zero=False, x_ticks=None, x_range=None, y_range=None):
    """Curves. `series` are (name, colour, pieces, kind): pieces of [(x, y)], kind `plain`, `faint`, `dashed` or `dotted`
    (with a dot at each point); one without a name is not in the legend. `marks` are (x, words) of vertical lines."""
    points = [point for _, _, pieces, _ in series for piece in pieces for point in piece]
    names = {name: colour for name, colour, _, _ in series if name}
    head, rows = legend(names.items(), 64, 14)
    top, left, right = 18 * rows + 12 + (14 if marks else 0), 64, WIDTH - 20
    height = 230
    bottom = top + height
    x_low, x_high = x_range or (min(x for x, _ in points), max(x for x, _ in points))
    y_low, y_high = y_range or (0 if from_zero else min(y for _, y in points), max(y for _, y in points))
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    if not y_range:
        room = 0.06 * (y_high - y_low) or 0.1 * abs(y_high) or 1
        y_low, y_high = (0 if from_zero else y_low - room), y_high + room

    def across_scale(x):
        return left + (right - left) * (x - x_low) / (x_high - x_low)

    def up(y):
        return bottom - height * (y - y_low) / (y_high - y_low)

    parts = head + across(x_low, x_high, top, bottom, across_scale, x_label, x_ticks)
    for tick in ticks(y_low, y_high, 5):
        parts += [line(left, up(tick), right, up(tick), "grid"), text(left - 6, up(tick) + 4, tidy(tick), "end")]
    middle = (top + bottom) / 2
    parts.append(f'<g transform="translate(14 {middle:.0f}) rotate(-90)">{text(0, 0, y_label, "middle", "name")}</g>')
    for x, words in marks:
        x = max(x, x_low)
        parts += [
            line(across_scale(x), top, across_scale(x), bottom, "mark"),
            text(across_scale(x) + 4, top - 4, words, kind="name"),
        ]
    looks = {
        "plain": 'stroke-width="2"',
        "dotted": 'stroke-width="2"',
        "faint": 'stroke-width="1" opacity="0.35"',
        "dashed": 'stroke-width="1.5" stroke-dasharray="6 4"',
    }
    for _, colour, pieces, kind in series:
        for piece in pieces:
            path = " ".join(f"{across_scale(x):.1f},{up(y):.1f}" for x, y in piece)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {looks[kind]}/>')
            if kind == "dotted" or len(piece) == 1:
                parts += [
                    f'<circle cx="{across_scale(x):.1f}" cy="{up(y):.1f}" r="3.2" fill="{colour}">'
                    f"<title>{tidy(round(x, 4))}: {tidy(round(y, 4))}</title></circle>"
                    for x, y in piece
                ]
    return drawing(bottom + 42, title, parts + [line(left, bottom, right, bottom, "axis")])


def histograms(panels, title, x_label, y_label, legend_entries):
    """Histograms above each other on one horizontal axis. A panel is (label, [(colour, values)] from the bottom up,
    (value, words) of a marked place)."""
    high = max(value for _, layers, _ in panels for _, values in layers for value in values)
    width = max(1, round_step(max(high, 1), 40))
    bins = int(high // width) + 1
    head, rows = legend(legend_entries, LEFT, 14)
    tall, gap, top = 62, 24, 18 * rows + 4
    head.append(text(LEFT - 6, top + 14, y_label, "end", "small"))
    bottom = top + (tall + gap) * len(panels)

    def scale(value):
        return LEFT + (WIDTH - LEFT - 20) * value / (bins * width)

    parts = head + across(0, bins * width, top, bottom, scale, x_label)
    for i, (name, layers, (place, words)) in enumerate(panels):
        base = top + (tall + gap) * (i + 1)
        counts = [[0] * bins for _ in layers]
        for layer, (_, values) in zip(counts, layers):
            for value in values:
                layer[int(value // width)] += 1
        most = max(sum(column) for column in zip(*counts))
        parts += [
            text(LEFT - 34, base - tall / 2 + 4, name, "end"),
            text(LEFT - 6, base - tall + 8, tidy(most), "end", "small"),
            text(LEFT - 6, base, "0", "end", "small"),
            line(LEFT, base, WIDTH - 20, base, "axis"),
        ]
        for column in range(bins):
            at = base
            for layer, (colour, _) in zip(counts, layers):
                rise = tall * layer[column] / most
                if rise:
                    hint = f"{name}, {tidy(column * width)} to {tidy((column + 1) * width)}: {layer[column]}"
                    parts.append(
                        box(scale(column * width) + 0.5, at - rise, scale(width) - scale(0) - 1, rise, colour, hint)
                    )
                at -= rise
        side = "end" if scale(place) > 0.7 * WIDTH else "start"
        parts += [
            line(scale(place), base - tall - 14, scale(place), base, "mark"),
            text(scale(place) + (4 if side == "start" else -4), base - tall - 5, words, side, "small"),
        ]
    return drawing(bottom + 42, title, parts)
