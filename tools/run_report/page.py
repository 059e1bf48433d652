"""The page: its style, and the few kinds of element that its sections are made of."""

import html

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #222; background: #fff; margin: 0 auto;
       padding: 24px 28px 60px; max-width: 1040px; }
h1 { font-size: 26px; margin: 0 0 2px; overflow-wrap: anywhere; } h2 { font-size: 20px; margin: 44px 0 6px; }
h3 { font-size: 15px; margin: 26px 0 2px; }
p { margin: 4px 0 10px; max-width: 76ch; } .quiet { color: #666; }
nav a { margin-right: 14px; } a { color: #0061a0; }
.state { display: inline-block; padding: 1px 10px; border-radius: 10px; font-size: 14px; background: #eee; vertical-align: 4px; }
.done { background: #d8f0e6; } .failed { background: #fbdcc9; } .running { background: #dcecf7; } .stopped { background: #fbeecb; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.card { border: 1px solid #ddd; border-radius: 8px; padding: 8px 14px; flex: 1 1 140px; }
.card b { display: block; font-size: 21px; font-weight: 600; } .card span { color: #666; font-size: 13px; }
table { border-collapse: collapse; margin: 8px 0 14px; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 3px 12px 3px 0; border-bottom: 1px solid #e6e6e6; text-align: right; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; border-bottom: 1px solid #999; vertical-align: bottom; }
th:first-child, td:first-child, .named th:nth-child(2), .named td:nth-child(2), .plain th, .plain td { text-align: left; }
.plain td { font-variant-numeric: normal; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
figure { margin: 6px 0 18px; } figcaption { color: #555; font-size: 13.5px; max-width: 86ch; }
svg { display: block; width: 100%; max-width: 860px; height: auto; }
svg text { font: 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #333; }
svg .small { font-size: 11px; fill: #555; } svg .name { fill: #555; }
svg .grid { stroke: #e9e9e9; } svg .axis { stroke: #777; } svg .mark { stroke: #555; stroke-dasharray: 2 3; }
details { border: 1px solid #ddd; border-radius: 8px; padding: 6px 14px; margin: 8px 0; }
summary { cursor: pointer; } summary .quiet { font-size: 13.5px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 22px; } .pair > * { min-width: 0; }
@media (max-width: 720px) { .pair { grid-template-columns: 1fr; } }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; border-left: 3px solid #0072b2; padding-left: 12px; }
.text.extended { border-color: #d55e00; } .text.instruction { border-color: #999; }
.warning { border-left: 4px solid #e69f00; background: #fdf6e6; padding: 6px 14px; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } nav { display: none; } h2 { break-after: avoid; }
  figure, table, .card { break-inside: avoid; } svg { max-width: 17cm; } .wide { overflow: visible; } }
"""
# Control characters, which a page may not hold, as their pictures.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def escaped(words):
    return html.escape(str(words).translate(PICTURES))


def table(headers, rows, kind="named"):
    """`named`: the first two columns are names, the others numbers; `plain`: all are words."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in headers)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>\n{body}</table></div>\n'


def figure(drawing, caption):
    return f"<figure>{drawing}<figcaption>{escaped(caption)}</figcaption></figure>\n"


def paragraph(words, kind=""):
    return f'<p{f" class={kind}" if kind else ""}>{escaped(words)}</p>\n'


def heading(words):
    return f"<h3>{escaped(words)}</h3>\n"


def folded(summary, content, aside="", is_open=False):
    quiet = f' <span class="quiet">{escaped(aside)}</span>' if aside else ""
    return f"<details{' open' if is_open else ''}><summary>{escaped(summary)}{quiet}</summary>{content}</details>\n"


def cards(entries):
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b>{escaped(value)}</b><span>{escaped(name)}</span></div>' for name, value in entries
        )
        + "</div>\n"
    )


def whole(title, head, sections):
    """The page of (name, content) sections; those without content are left out."""
    there = [(name, content) for name, content in sections if content]
    links = "".join(f'<a href="#{name.lower().replace(" ", "-")}">{escaped(name)}</a>' for name, _ in there)
    body = "".join(
        f'<h2 id="{name.lower().replace(" ", "-")}">{escaped(name)}</h2>\n{content}' for name, content in there
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n<body>\n{head}<nav>{links}</nav>\n{body}</body></html>\n"
    )
