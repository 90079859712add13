"""The report as one self-contained HTML page: no script, nothing is fetched, light and dark, narrow and wide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from cl_prompts import __version__
from cl_prompts.reports import cells
from cl_prompts.reports.blocks import Block
from cl_prompts.reports.contents import (
    COST_NAMES,
    SPREADS,
    cost_cells,
    difference_sentences,
    formulas,
    marked_sentences,
    marks_of,
    published_sentences,
)
from cl_prompts.reports.cost import WORK_FORMULA
from cl_prompts.reports.figures import Figure, figures
from cl_prompts.reports.formulas import LOWER_IS_BETTER
from cl_prompts.reports.identity import value_text
from cl_prompts.reports.report import Report, common_settings, side_by_side
from cl_prompts.reports.rows import Row
from cl_prompts.reports.statistics import Spread
from cl_prompts.reports.svg import series

LARGEST = 4_500_000
"""Bytes from which on blocks get no more pictures: a page is to be sent around."""

MOST_METRICS = 8
"""Columns of metrics in a table of usual size; with more it is set smaller."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for it: nothing but the style inside."""


def page(report: Report) -> str:
    """The whole page; the same report gives the same text."""
    title = f"Report of {report.folder.resolve().name}"
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
    )
    parts = [head, *_opening(report, title)]
    for family, blocks in report.families:
        parts.append(f"<h2>{escape(family)}</h2>")
        parts += _side_by_side(blocks)
        for block in blocks:
            parts += _block(block)
            parts += _pictures(block, room=LARGEST - sum(map(len, parts)))
        parts += _common(blocks)
    if report.blocks:
        parts += _columns(report.blocks)
    parts += _left_out(report)
    parts.append(f'<p class="sub">Written by cl-prompts {__version__}, mode=report.</p></body></html>\n')
    return "".join(parts)


def _opening(report: Report, title: str) -> Iterator[str]:
    counted = f"{cells.numbered(report.runs, 'finished run')} in {cells.numbered(len(report.blocks), 'block')}"
    others = f"{cells.numbered(len(report.left_out), 'folder')} in no mean"
    yield f'<header><h1>{escape(title)}</h1><p class="sub">{counted}, {others}</p>'
    for warning in report.warnings:
        yield f'<p class="warning">{escape(warning)}</p>'
    if len(report.blocks) > 1:
        links = (f'<li><a href="#block{block.number}">{_title(block)}</a></li>' for block in report.blocks)
        yield f"<nav><ul>{''.join(links)}</ul></nav>"
    yield "</header>"


def _title(block: Block) -> str:
    condition = f"<code>{escape(block.condition)}</code>" if block.condition else "the only one of its kind"
    return f"Block {block.number}, {escape(block.family)}: {condition}"


def _block(block: Block) -> Iterator[str]:
    condition = f": <code>{escape(block.condition)}</code>" if block.condition else ""
    yield f'<section id="block{block.number}"><h3>Block {block.number}{condition}</h3>'
    marks = marks_of(block)
    best = {name: _best(block.rows, name) for name in block.metrics}
    names = [_head("method", text=True), _head("n"), *map(_head, block.metrics), *map(_head, COST_NAMES)]
    rows = []
    for row in block.rows:
        numbers = [_cell(row.metrics.get(name), best=row.number in best[name]) for name in block.metrics]
        costs = [f"<td>{escape(cell)}</td>" for cell in cost_cells(row)]
        name = _name(row, marks[row.number])
        rows.append(f"<tr>{name}<td>{len(row.runs)}</td>{''.join(numbers)}{''.join(costs)}</tr>")
    yield _table(names, rows, "dense" if len(block.metrics) > MOST_METRICS else "")
    yield _notes(block)
    if block.reference is not None:
        yield from _differences(block)
    yield "</section>"


def _best(rows: Sequence[Row], name: str) -> set[int]:
    """Rows with the best mean of a metric, as it is shown."""
    sign = -1 if name in LOWER_IS_BETTER else 1
    means = {row.number: round(sign * row.metrics[name].mean, 3) for row in rows if name in row.metrics}
    return {number for number, mean in means.items() if mean == max(means.values())} if len(means) > 1 else set()


def _notes(block: Block) -> str:
    items = [f"({mark}) {sentence}" for mark, sentence in marked_sentences(block)]
    items += [f"row {row.number}, {sentence}" for row, sentence in published_sentences(block)]
    items += block.notes
    return f'<ul class="notes">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>' if items else ""


def _differences(block: Block) -> Iterator[str]:
    names = [name for name in block.names.headline if name in block.metrics]
    rows = []
    for row in block.rows:
        if row.differences:
            pairs = max(found.pairs for found in row.differences.values())
            numbers = [f"<td>{_minus(cells.difference(row.differences.get(name)))}</td>" for name in names]
            rows.append(f"<tr>{_name(row, '')}<td>{pairs}</td>{''.join(numbers)}</tr>")
    yield f'<p class="notes">{escape(" ".join(difference_sentences(block)))}</p>'
    if rows:
        heads = [_head("method", text=True), _head("pairs"), *(_head(f"Δ {name}") for name in names)]
        yield f"<details><summary>Differences in numbers</summary>{_table(heads, rows)}</details>"


def _pictures(block: Block, room: int) -> Iterator[str]:
    for figure in figures(block):
        drawn = "".join(_figure(figure))
        if len(drawn) > room:
            yield f"<h4>{escape(figure.heading)}</h4><p class='notes'>Left out: the page would be too large.</p>"
            continue
        room -= len(drawn)
        yield drawn


def _figure(figure: Figure) -> Iterator[str]:
    if not figure.pictures and not figure.note:
        return
    yield f"<h4>{escape(figure.heading)}</h4>"
    if figure.pictures:
        kind = "grid many" if figure.many else "grid"
        shown = (
            f"<figure>{drawn}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"
            for drawn, caption in figure.pictures
        )
        yield f'<div class="{kind}">{"".join(shown)}</div>'
    yield f'<p class="notes">{escape(figure.note)}</p>'


def _side_by_side(blocks: Sequence[Block]) -> Iterator[str]:
    found = side_by_side(blocks)
    if found is None:
        return
    yield "<h3>Side by side</h3>"
    yield '<p class="warning">Columns differ in what their heads say: compare rows within a column only.</p>'
    names = [_head("method", text=True)]
    names += [
        f"<th>{escape(block.names.headline[position])}<span class='set'>{_breaking(block.condition)}</span></th>"
        for position in (0, 1)
        for block in found.blocks
    ]
    rows = []
    for label, members in found.rows:
        pairs = list(zip(found.blocks, members, strict=True))
        numbers = [
            _cell(None if row is None else row.metrics.get(block.names.headline[position]))
            for position in (0, 1)
            for block, row in pairs
        ]
        method, _, settings = label.partition(" ")
        rows.append(f'<tr><td class="t first">{_method(method, settings)}</td>{"".join(numbers)}</tr>')
    yield _table(names, rows)


def _common(blocks: Sequence[Block]) -> Iterator[str]:
    common = common_settings(blocks)
    yield "<details><summary>What is equal in these runs</summary>"
    yield _definitions((key, value) for key, value in sorted(common.items()))
    yield "</details>"
    for block in blocks if len(blocks) > 1 else ():
        own = {key: value_text(value) for key, value in block.identity.items() if key not in common}
        summary = f"<summary>What block {block.number} alone is</summary>"
        yield f"<details>{summary}{_definitions(sorted(own.items()))}</details>"


def _columns(blocks: Sequence[Block]) -> Iterator[str]:
    yield f"<h2>What the columns are</h2><p>{escape(SPREADS)} Bold: the best mean of a column.</p>"
    terms = [(name, f"{meaning}. {formula}") for name, meaning, formula in formulas(blocks)]
    terms.append((COST_NAMES[0], "numbers that training may move"))
    terms.append((COST_NAMES[1], WORK_FORMULA))
    terms.append((COST_NAMES[2], "wall time of a run, evaluation included"))
    terms.append(
        (COST_NAMES[3], "highest resident memory of the process of a run; of tensors on a GPU where it ran on one")
    )
    yield _definitions(terms, kind="formulas")


def _left_out(report: Report) -> Iterator[str]:
    if not report.left_out:
        return
    yield "<h2>In no mean</h2>"
    names = [_head(name, text=True) for name in ("folder", "run", "status", "reason")]
    rows = [
        f'<tr><td class="t"><code>{escape(one.name)}</code></td><td class="t">{escape(one.label)}</td>'
        f'<td class="t">{escape(one.status)}</td><td class="t long">{escape(one.reason)}</td></tr>'
        for one in report.left_out
    ]
    yield _table(names, rows)


def _definitions(terms: Iterable[tuple[str, str]], kind: str = "") -> str:
    items = "".join(f"<dt><code>{escape(term)}</code></dt><dd>{escape(text)}</dd>" for term, text in terms)
    return f'<dl class="{kind}">{items}</dl>' if kind else f"<dl>{items}</dl>"


def _table(names: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    head = f"<thead><tr>{''.join(names)}</tr></thead>"
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _head(name: str, *, text: bool = False) -> str:
    shown = _breaking(name)
    return f'<th class="t{" first" if name == "method" else ""}">{shown}</th>' if text else f"<th>{shown}</th>"


def _breaking(name: str) -> str:
    """A name that may break where its words end."""
    return re.sub(r"([_.=])(?=\w)", r"\1<wbr>", escape(name))


def _name(row: Row, marks: str) -> str:
    key = f'<span class="key {series(row.number)}">{row.number}</span> '
    mark = f" <sup>{escape(marks)}</sup>" if marks else ""
    return f'<td class="t first">{_method(row.method.name, row.settings, key, mark)}</td>'


def _method(name: str, settings: str, key: str = "", mark: str = "") -> str:
    shown = f'<span class="set">{escape(settings)}</span>' if settings else ""
    return f'<span class="one">{key}<b>{escape(name)}</b>{mark}</span>{shown}'


def _cell(found: Spread | None, *, best: bool = False) -> str:
    mean, _, sd = cells.percent(found).partition(" ± ")
    shown = f"<b>{mean}</b>" if best else mean
    return f"<td>{shown}{f' <span class=sd>± {sd}</span>' if sd else ''}</td>"


def _minus(text: str) -> str:
    return escape(text).replace("-", "−") if text != cells.ABSENT else text
