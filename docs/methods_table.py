"""Print the table of docs/methods.md from what the methods declare; tests/test_methods_page.py keeps the page in step.

python -m docs.methods_table             # the table, from the folder of the project
python -m docs.methods_table --write     # put it into the page
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from cl_prompts.strategies import declaration
from cl_prompts.strategies.declaration import Needs, StrategySettings, read_settings, strategy_names

PAGE = Path(__file__).with_name("methods.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEADER = ("`strategy=`", "what it is", "variants", "trains", "query", "replay", "boundaries", "several labels")


def rows() -> Iterator[tuple[str, ...]]:
    """One row a method of this package, in the order of their names."""
    folder = Path(declaration.__file__).parent
    for name in strategy_names():
        file = folder / f"{name}.py"
        if not file.is_file():
            continue  # a method of another installed package has pages of its own
        settings = read_settings(name)
        needs = settings.needs
        sentence = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        yield (
            f"`{name}`",
            " ".join(sentence.split()).removesuffix("."),
            ", ".join(f"`{variant}`" for variant in variants(settings)),
            needs.trains if needs.gradient else f"{needs.trains}: closed form",
            "yes" if needs.query_pass else "",
            "" if needs.replay == "none" else needs.replay,
            boundaries(needs),
            "yes" if needs.multi_label else "",
        )


def variants(settings: type[StrategySettings]) -> list[str]:
    """Variants of a method, the default first."""
    field = settings.model_fields.get("variant")
    if field is None:
        return []
    names = [name for name in get_args(field.annotation) if isinstance(name, str)]
    return sorted(names, key=lambda name: name != field.default)


def boundaries(needs: Needs) -> str:
    """What the default variant needs of session boundaries."""
    return "" if needs.boundaries == "none" else needs.boundaries


def table() -> str:
    """The whole table as Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page_with_table(text: str) -> str:
    """The page with its table replaced by the present one."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
