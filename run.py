"""Start a run from a checkout: `python run.py scenario=si_blurry strategy=mvp` (see `python run.py --help`)."""

from cl_prompts.runs import main

raise SystemExit(main())
