"""A self-contained HTML page of tables, bar charts and images."""

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --bar: #4477aa; --line: #8885; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
h1, td, figcaption { overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid var(--line); }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; }
.sheet img { width: 100%; height: 7rem; object-fit: contain; background: #8882; }
.large { grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }
.large img { height: auto; }
figure { margin: 0; } figcaption { font-size: .75rem; line-height: 1.3; }
svg { width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return an HTML document of (heading, HTML) sections; empty ones are left out."""
    body = "".join(
        f"<section><h2>{escape(head)}</h2>{html}</section>\n" for head, html in sections if html
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><p>{escape(lead)}</p>\n{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence], *, limit: int, more: str) -> str:
    """Return a table of the first `limit` rows; `more` names the file with the others."""
    if not rows:
        return ""
    cells = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows[:limit])
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    rest = f"<p>{len(rows) - limit:,} more in {escape(more)}</p>" if len(rows) > limit else ""
    return f"<table><tr>{top}</tr>\n{cells}</table>{rest}"


def bars(title: str, rows: Sequence[tuple[str, int]]) -> str:
    """Return a chart with a bar for each (name, count)."""
    left, bar_width, bar_height = 150, 240, 18
    most = max((count for _, count in rows), default=0) or 1
    marks = []
    for row, (name, count) in enumerate(rows):
        y = row * bar_height
        short = name if len(name) <= 24 else f"{name[:23]}…"
        marks.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}</title></text>"
            f'<rect x="{left}" y="{y + 3}" width="{max(bar_width * count / most, 0.5):.1f}" '
            f'height="{bar_height - 6}" fill="var(--bar)"/>'
            f'<text x="{left + bar_width * count / most + 6:.1f}" y="{y + 13}">{count:,}</text>'
        )
    size = f'viewBox="0 0 {left + bar_width + 70} {bar_height * len(rows)}"'
    return f'<figure><b>{escape(title)}</b><svg role="img" {size}>{"".join(marks)}</svg></figure>'


def charts(figures: Sequence[str]) -> str:
    """Return figures side by side."""
    return f'<div class="charts">{"".join(figures)}</div>'


def sheet(pictures: Sequence[tuple[bytes, str]], *, large: bool = False) -> str:
    """Return a contact sheet of (JPEG file, caption); captions may have several lines."""
    figures = "".join(
        f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{'<br>'.join(map(escape, caption.splitlines()))}</figcaption></figure>\n"
        for data, caption in pictures
    )
    size = "sheet large" if large else "sheet"
    return f'<div class="{size}">{figures}</div>' if pictures else ""


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"
