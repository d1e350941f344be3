"""The page of a report: one self-contained HTML file, with a light and a dark colour scheme.

The markup is valid XML and HTML, so that a test can parse it. Its security policy allows only this module's script.
Markup that was not escaped by mistake cannot run scripts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infogan_ray.web.reports import parallel, svg
from infogan_ray.web.reports.markup import MISSING, escape, format_value, is_number

CSS = """
:root { --paper: #fff; --ink: #1d2127; --soft: #5c6470; --line: #dfe3e8; --mute: #9aa3ad; --tint: #f4f6f8;
  --accent: #0066a8; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8eaed; --soft: #a3acb8; --line: #333a43;
  --mute: #6d7783; --tint: #1d2227; --accent: #5fb2ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1.2rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 60rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
nav { font-size: .9rem; color: var(--soft); }
nav a { margin-right: .9rem; white-space: nowrap; }
p.soft { color: var(--soft); font-size: .9rem; }
.lead { font-size: 1.1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--tint); border-radius: .5rem; padding: .6rem .8rem; }
.tile dt { font-size: .85rem; color: var(--soft); }
.tile dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile dd small { display: block; font-size: .8rem; color: var(--soft); line-height: 1.35; }
pre { background: var(--tint); border-radius: .5rem; padding: .7rem .9rem; overflow-x: auto; font-size: .88rem;
  margin: .5rem 0; }
.scroll { overflow: auto; max-height: 42rem; margin: .7rem 0; }
.scroll.chart-box { max-height: none; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { max-width: 22rem; overflow-wrap: break-word; }
td.w { min-width: 14rem; }
thead th { position: sticky; top: 0; background: var(--paper); vertical-align: bottom; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
td small { color: var(--soft); }
.heat { display: block; margin: -.3rem -.6rem; padding: .3rem .6rem;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 60%), transparent); }
tr.first td { background: var(--tint); font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: " \\2195"; color: var(--mute); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--ink); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--ink); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; align-items: start; }
figure { margin: .6rem 0; min-width: 0; }
figure img { width: 100%; height: auto; display: block; border: 1px solid var(--line); background: #fff; }
figcaption { font-size: .88rem; color: var(--soft); }
summary { cursor: pointer; }
@media (max-width: 34rem) { body { padding: .8rem; font-size: 15px; } .pair { grid-template-columns: 1fr; } }
"""

# Without this script, the tables keep the report's order. It contains no '<' or '&', because the page is also XML.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => {
        const cell = row.cells[column], number = cell.dataset.v;
        return number !== undefined ? Number(number) : cell.textContent === "MISSING" ? null : cell.textContent;
      };
      const compare = (one, other) => {
        const a = key(one), b = key(other);
        if (a === null || b === null) return (a === null) - (b === null);
        const kinds = (typeof a === "string") - (typeof b === "string");
        const order = kinds || (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
        return up ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
""".replace("MISSING", MISSING)


@dataclass(frozen=True)
class Cell:
    """A table cell. ``order``: the number to sort by, if not the text. ``markup``: HTML that the caller has escaped."""

    words: str = ""
    order: float | None = None
    title: str = ""
    markup: str = ""


def page(title: str, sections: Sequence[tuple[str, str, str]], head: str) -> str:
    """The complete page. ``sections``: anchor, heading and body as HTML. ``head``: HTML above the sections."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = " ".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{body}</section>' for anchor, heading, body in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<style>{CSS}{svg.CSS}{parallel.CSS}</style></head><body>{head}<nav>{links}</nav>{bodies}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def table(
    headings: Sequence[str | Cell], rows: Sequence[Sequence[Any]], first: Sequence[int] = (), sortable: bool = True
) -> str:
    """A table of Cells or plain values. Numbers are aligned right. ``first``: the highlighted rows."""
    cells = [[value if isinstance(value, Cell) else cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(_is_plain_number(row[column]) for row in cells) for column in range(len(headings))]
    heads = [heading if isinstance(heading, Cell) else Cell(heading) for heading in headings]
    parts = [
        f'<th scope="col"{_class("n" if right else "")}{_title(head.title)}>{escape(head.words)}</th>'
        for head, right in zip(heads, numeric, strict=True)
    ]
    lines = []
    for index, row in enumerate(cells):
        tds = "".join(_td(value, right) for value, right in zip(row, numeric, strict=True))
        lines.append(f"<tr{_class('first' if index in first else '')}>{tds}</tr>")
    kind = ' class="sortable"' if sortable and len(rows) > 1 else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{"".join(parts)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def cell(value: Any) -> Cell:
    return Cell(format_value(value), value if is_number(value) else None)


def figure(chart: str, words: str = "") -> str:
    """A chart with a caption. It scrolls horizontally on a narrow screen."""
    caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    return f'<figure><div class="scroll chart-box">{chart}</div>{caption}</figure>'


def paragraph(words: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(words)}</p>"


def command(words: str) -> str:
    return f"<pre>{escape(words)}</pre>"


def tiles(pairs: Sequence[tuple[str, str, str]]) -> str:
    """Tiles of (name, value, explanation)."""
    inner = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(small)}</small></dd></div>'
        for name, value, small in pairs
    )
    return f'<dl class="tiles">{inner}</dl>'


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _is_plain_number(cell: Cell) -> bool:
    return not cell.markup and (cell.order is not None or cell.words == MISSING)


def _td(cell: Cell, right: bool) -> str:
    order = "" if cell.order is None else f' data-v="{float(cell.order)!r}"'
    kind = "n" if right else "w" if len(cell.words) > 30 else ""
    return f"<td{_class(kind)}{order}{_title(cell.title)}>{cell.markup or escape(cell.words)}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _title(words: str) -> str:
    return f' title="{escape(words)}"' if words else ""
