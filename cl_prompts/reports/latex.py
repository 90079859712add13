"""The report as LaTeX tables; they need the package booktabs and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from cl_prompts.reports import cells
from cl_prompts.reports.blocks import Block
from cl_prompts.reports.contents import (
    COST_NAMES,
    SPREADS,
    cost_cells,
    difference_sentences,
    marked_sentences,
    marks_of,
    published_sentences,
)
from cl_prompts.reports.report import Report

WIDEST = 4
"""Metrics in a table; more do not fit a page."""


def latex(report: Report) -> str:
    """One floating table for each block, to be read with `\\input`; metrics of the headline and up to two more."""
    lines = ["% Needs \\usepackage{booktabs} in the preamble. Written by mode=report; do not edit."]
    lines += [f"% Warning: {_comment(warning)}" for warning in report.warnings]
    for block in report.blocks:
        lines += ["", *_table(block)]
    return "\n".join(lines) + "\n"


def _table(block: Block) -> Iterator[str]:
    first = [name for name in block.names.headline if name in block.metrics]
    preferred = [name for name in block.metrics if name.endswith(("avg", "f_last", "ap_forgetting", "cf1_last"))]
    chosen = [*first, *(name for name in preferred if name not in first)][:WIDEST]
    names = [name for name in block.metrics if name in chosen]
    reference = [] if block.reference is None else [f"$\\Delta$ {_text(name)}" for name in first]
    marks = marks_of(block)
    yield from (r"\begin{table}[t]", r"\centering", r"\small")
    yield f"\\caption{{{_text(block.title)}. {_text(SPREADS)}}}"
    yield f"\\label{{tab:block{block.number}}}"
    columns = len(names) + len(reference) + len(COST_NAMES) + 1
    yield f"\\begin{{tabular}}{{l{'r' * columns}}}"
    yield r"\toprule"
    header = ["Method", "$n$", *map(_text, names), *reference, *map(_text, COST_NAMES)]
    yield f"{' & '.join(header)} \\\\"
    yield r"\midrule"
    for row in block.rows:
        mark = f"$^{{{marks[row.number]}}}$" if marks[row.number] else ""
        line = [
            f"{_text(row.label)}{mark}",
            str(len(row.runs)),
            *(_math(cells.percent(row.metrics.get(name), plus_minus=r" \pm ")) for name in names),
            *(_math(cells.difference((row.differences or {}).get(name))) for name in (first if reference else [])),
            *map(_text, cost_cells(row)),
        ]
        yield f"{' & '.join(line)} \\\\"
    yield from (r"\bottomrule", r"\end{tabular}", "", r"\smallskip", r"\raggedright\footnotesize")
    yield from _below(block)
    yield r"\end{table}"


def _below(block: Block) -> Iterator[str]:
    for mark, sentence in marked_sentences(block):
        yield f"$^{{{mark}}}$ {_text(sentence)}\\\\"
    for name, meaning in block.names.meanings.items():
        if name in block.metrics:
            yield f"{_text(name)}: {_text(meaning)}."
    for row, sentence in published_sentences(block):
        yield f"{_text(row.label)}, {_text(sentence)}."
    for sentence in [*difference_sentences(block), *block.notes]:
        yield f"{_text(sentence)}"


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "[": r"{[}",
    "]": r"{]}",
}


def _text(text: str) -> str:
    """Text without commands; letters outside ASCII are left to the reader's input encoding."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _math(cell: str) -> str:
    return "--" if cell == cells.ABSENT else f"${cell}$"


def _comment(text: str) -> str:
    return " ".join(text.split())
