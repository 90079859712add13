"""Where the configuration files lie: inside an installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from cl_prompts.errors import UserError


def config_folder() -> Path:
    """The folder `configs`.

    Raises:
        UserError: it is neither inside the package nor beside it.
    """
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "run.yaml").is_file():
            return folder
    raise UserError(f"the folder of configs is missing beside {package}; install cl-prompts again")
