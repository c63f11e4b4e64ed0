"""What texts and tables of models and files in notebooks are made of. Only what shows something imports this.

>>> sized(98_123_456), sized(999_960), sized(12)
('98.1 MB', '1.0 MB', '12 bytes')
"""

from html import escape

MOST = 1000  # rows of a table
LONG = 120  # letters of a cell
UNITS = ("kB", "MB", "GB", "TB")


def sized(n):
    """A number of bytes, in the unit that leaves one to three digits before the point."""
    if n < 1000:
        return f"{n} bytes"
    unit = -1
    while round(n, 1) >= 1000 and unit < len(UNITS) - 1:
        n, unit = n / 1000, unit + 1
    return f"{n:.1f} {UNITS[unit]}"


def table(head, rows):
    """HTML of a table: names of columns and rows of anything, at most MOST of them; long cells are cut."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    for row in rows[:MOST]:
        lines.append("".join(f'<td style="text-align:left">{escape(_cut(str(cell)))}</td>' for cell in row))
    more = f"<div>and {len(rows) - MOST:,} more</div>" if len(rows) > MOST else ""
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>{more}"


def details(title, body, open=False):
    """HTML that unfolds: `title` is text, `body` HTML."""
    inside = f'<div style="margin-left:1.5em">{body}</div>'
    return f"<details{' open' if open else ''}><summary>{escape(title)}</summary>{inside}</details>"


def _cut(text):
    return text if len(text) <= LONG else f"{text[:LONG]}\u2026 ({len(text):,} letters)"
