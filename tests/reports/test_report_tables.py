"""The tables as text: Markdown letter by letter, CSV in full precision, LaTeX that closes what it opens."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from saved_folders import write_run

from cl_prompts.metrics.summary import METRICS
from cl_prompts.reports.csv_table import csv_table
from cl_prompts.reports.formulas import FORMULAS, metric_names
from cl_prompts.reports.latex import latex
from cl_prompts.reports.markdown import markdown
from cl_prompts.reports.report import Report, read_report
from cl_prompts.reports.terminal import print_report
from cl_prompts.runs.report_files import deciding_values

GOLDEN = Path(__file__).parents[1] / "golden" / "report_table.md"

SEVERAL = {
    "map_avg": 0.6,
    "map_last": 0.5,
    "cf1_last": 0.4,
    "of1_last": 0.3,
    "eval_images": "seen",
    "threshold": 0.8,
    "scores": "sigmoid",
    "cf1_kind": "mean_f1",
}


def study(root: Path) -> Report:
    """Two masks, three methods, one that deviates, one run that failed."""
    for mask in ("exposed", "batch"):
        for seed in (1, 2, 3):
            changes = {"protocol.train_mask": mask}
            write_run(root, "linear_probe", seed, 0.25 + seed / 100, changes=changes)
            write_run(
                root,
                "mvp",
                seed,
                0.5 + seed * seed / 100,
                changes=changes,
                manifest={"deviations": ["the mask_of a|prompt is *learned*"]},
                summary={"trainable_parameters": 40_320, "seconds": 3600.0 * seed},
            )
    for seed in (1, 2):
        write_run(root, "ncm", seed, 0.4, summary={"trainable_parameters": 0, "seconds": 6.5})
    write_run(root, "mvp", 4, 0.0, name="broken", summary={"status": "failed", "error": "no space | left"})
    return read_report(root, deciding_values)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    return study(tmp_path_factory.mktemp("tables") / "study")


def test_markdown_is_what_it_was(report):
    assert markdown(report) == GOLDEN.read_text(encoding="utf-8")


def test_markdown_tables_are_whole(report):
    lines = markdown(report).splitlines()
    for above, line in pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            columns = [len(re.findall(r"(?<!\\)\|", row)) for row in (above, line)]
            assert columns[0] == columns[1]


def test_csv_has_every_number_in_full(report):
    rows = list(csv.DictReader(io.StringIO(csv_table(report))))
    assert len(rows) == 6
    (row,) = (row for row in rows if row["strategy"] == "mvp" and row["condition"].endswith("exposed"))
    values = [0.51, 0.54, 0.59]
    assert float(row["a_last_mean"]) == pytest.approx(sum(values) / 3, abs=1e-15)
    assert float(row["a_last_sd"]) == pytest.approx(0.04041451884327381, abs=1e-15)
    assert float(row["a_last_difference"]) == pytest.approx(sum(values) / 3 - 0.27, abs=1e-15)
    assert (row["a_last_n"], row["a_last_pairs"], row["seeds"]) == ("3", "3", "1 2 3")
    assert (row["trainable_parameters"], row["forward_passes_per_sample"]) == ("40320.0", "9.0")
    assert row["reference"] == "linear_probe head=linear"
    assert row["deviations"] == "the mask_of a|prompt is *learned*"
    assert len(row["folders"].split()) == 3


def environments(text: str) -> list[str]:
    """Names of the environments in the order in which they open; every one closes before those around it."""
    opened: list[str] = []
    found = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z]+)\}", text):
        if kind == "begin":
            opened.append(name)
            found.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    return found


def test_latex_closes_what_it_opens_and_escapes_what_is_special(report):
    text = latex(report)
    assert environments(text) == ["table", "tabular"] * 2
    body = re.sub(r"^%.*$", "", text, flags=re.M)
    assert body.replace(r"\{", "").count("{") == body.replace(r"\}", "").count("}")
    assert re.sub(r"\\\$", "", body).count("$") % 2 == 0
    for table in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", body, flags=re.S):
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", table).group(1))
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 4
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}
    outside = re.sub(r"\$[^$]*\$", "", body)
    assert not re.search(r"(?<!\\)[_#%^]", outside)
    assert all(command in text for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\pm"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(report, tmp_path):
    (tmp_path / "table.tex").write_text(latex(report), encoding="utf-8")
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table.tex}\end{document}"
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60).returncode == 0


def test_the_terminal_says_what_matters(report):
    text = io.StringIO()
    print_report(report, Console(file=text, width=120))
    shown = " ".join(text.getvalue().split())
    assert shown.startswith("warning 2 blocks: what a fair comparison keeps equal differs between them")
    assert "Block 1: si_blurry, digits, vit_nano: protocol.train_mask=batch" in shown
    assert "mvp (a) variant=released 3 54.7 ± 4.0 54.7 ± 4.0 25.0 ± 0.0 40.3 k 9 2:00 h 1,024 MiB" in shown
    assert "(a) the mask_of a|prompt is *learned*" in shown
    assert "failed: broken (mvp, seed 4): after 100 of 100 samples: no space | left" in shown
    assert "f_last: best earlier accuracy of a class minus its last; mean over classes k" in shown
    assert max(map(len, text.getvalue().splitlines())) <= 120


def test_every_metric_has_a_formula():
    several = metric_names(SEVERAL)
    assert set(FORMULAS) == {*METRICS, *several.meanings}
    assert not [
        formula for formula in several.formulas.values() if re.search(r"\{(cf1|threshold|eval_images)", formula)
    ]
    assert several.formulas["cf1_last"].startswith(
        "mean over the classes of 2 hits / (predicted + positives) at p > 0.8"
    )
    other = metric_names(SEVERAL | {"cf1_kind": "from_mean_pr"})
    assert other.formulas["cf1_last"].startswith("2 P R / (P + R), P and R the means over the classes at p > 0.8")


def test_runs_of_several_labels_have_their_own_columns(tmp_path):
    changes = {"scenario.name": "mlcil"}
    for seed in (1, 2):
        write_run(tmp_path, "linear_probe", seed, metrics=SEVERAL | {"a_auc": None}, changes=changes)
    text = markdown(read_report(tmp_path, deciding_values))
    assert "| # | method | settings | n | map_avg | map_last | cf1_last | of1_last | trainable |" in text
    assert "60.0 ± 0.0" in text


RECIPE = {
    "experiment": "mvp_cifar100",
    "published": [
        {"paper": "Moon et al., ICCV 2023", "table": "Table 1", "metric": "a_last", "value": 62.6, "spread": 1.5},
        {"paper": "Moon et al., ICCV 2023", "table": "Table 1", "metric": "a_auc", "value": 68.1, "seeds": 5},
    ],
}


def test_published_values_stand_beside_ours_and_say_what_was_changed(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "mvp", seed, 0.6 + seed / 100, changes=RECIPE)
    report = read_report(tmp_path, deciding_values)
    text = markdown(report)
    assert (
        "- row 1, a_last: published 62.6 ± 1.5 (Moon et al., ICCV 2023, Table 1; recipe mvp_cifar100), ours 61.5 ± 0.7"
        "; the runs are not the recipe: "
    ) in text
    assert "published 68.1 (Moon et al., ICCV 2023, Table 1, 5 seeds; recipe mvp_cifar100)" in text
    (row,) = report.blocks[0].rows
    changes = row.published[0].changes
    assert "dataset=digits" in changes
    assert "backbone=vit_nano" in changes
    assert not [change for change in changes if change.startswith("dataset.")]
    (table,) = csv.DictReader(io.StringIO(csv_table(report)))
    assert (table["a_last_published"], table["a_last_published_sd"]) == ("62.6", "1.5")
    assert "published 62.6 ± 1.5" in latex(report).replace(r"$\pm$", "±")


def test_a_recipe_that_is_not_here_is_said(tmp_path):
    write_run(tmp_path, "mvp", 1, changes=RECIPE | {"experiment": "of_somebody_else"})
    (row,) = read_report(tmp_path, deciding_values).blocks[0].rows
    assert row.published[0].changes == ("a recipe that is not among the configs here",)
