"""From words of the command line to checked jobs: parsing, choices, sweeps, and equality with Hydra's composition."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.types import RunMode
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cl_prompts.backbones.records import same_model
from cl_prompts.errors import UserError
from cl_prompts.runs.compose import open_composer
from cl_prompts.runs.fields import field_texts
from cl_prompts.runs.overrides import FUNCTION, TEXT_KEYS, read_words
from cl_prompts.runs.request import read_request
from cl_prompts.runs.schema import GROUPS, RunSettings, group_schema, known_names
from cl_prompts.strategies.declaration import strategy_names

METHODS = ", ".join(strategy_names())


@pytest.fixture(scope="module")
def composer():
    with open_composer() as opened:
        yield opened


@pytest.fixture(scope="module")
def own_composer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own configs")
    files = {
        "strategy/mvp_small.yaml": "# My small MVP\nname: mvp\npool_size: 4\n",
        "experiment/bad_choice.yaml": "# @package _global_\n# x\ndefaults:\n  - override /strategy: mvpp\n",
        "experiment/bad_key.yaml": "# @package _global_\n# x\nprotocol:\n  lrr: 3\n  lr: fast\nfoo: 1\n",
        "experiment/broken.yaml": "# @package _global_\n# x\nprotocol:\n  lr: 1\n lr: [}\n",
        "experiment/sweep.yaml": (
            "# @package _global_\n# x\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
        ),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with open_composer(config_dir=str(folder)) as opened:
        yield opened


def problems(composer, *words, multirun=False):
    request = read_request(composer, words, multirun=multirun)
    assert bool(request.problems) != bool(request.configs)
    return list(request.problems)


def configs(composer, *words, multirun=False):
    request = read_request(composer, words, multirun=multirun)
    assert request.problems == ()
    return request.configs


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["seed=3", "protocol.lr=1e-3", "strategy.general_layers=[0]"],
        ["experiment=mvp_mask", "strategy.pool_size=3", "name=x1"],
        ["strategy=ncm", "scenario=iid", "protocol=si_blurry", "+seed=4", "++scenario.n_sessions=3"],
        ["output=/tmp/some folder/${strategy.name}", "name='${scenario.name}_${seed}'"],
        ["dataset.train_per_class=5", "scenario.plan=null", "tensorboard=False"],
    ],
)
def test_what_is_checked_is_what_hydra_runs(composer, words):
    """Our application of `key=value` words to the files gives exactly the configuration of Hydra's own composition."""
    request = read_request(composer, words, multirun=False)
    (config,) = request.configs
    cfg = composer.loader.load_configuration("run", list(request.hydra_words), RunMode.RUN)
    by_hydra = OmegaConf.to_container(cfg, resolve=True)
    by_hydra["experiment"] = by_hydra["hydra"]["runtime"]["choices"]["experiment"]
    del by_hydra["hydra"]
    by_hydra.setdefault("published", [])  # of recipes that name what papers report
    assert config.model_dump(mode="json") == by_hydra


def test_a_plus_means_the_same_as_none_and_unknown_keys_stay_unknown(composer):
    assert configs(composer, "+seed=4")[0].seed == 4
    assert configs(composer, "++strategy.pool_size=4")[0].strategy.pool_size == 4
    for sign in ("", "+", "++"):
        (problem,) = problems(composer, f"{sign}strategy.foo=1")
        assert problem.startswith("strategy.foo=1: unknown key; strategy=mvp has variant, pool_size")


def test_the_last_of_two_words_counts(composer):
    (config,) = configs(composer, "seed=1", "strategy=mvp", "seed=2", "strategy=ncm")
    assert (config.seed, config.strategy_name) == (2, "ncm")


def test_a_tilde_is_the_home_folder(composer):
    assert configs(composer, "output=~/some runs")[0].output == f"{Path.home()}/some runs"


ORDINARY_TEXT = [
    "/tmp/Müller",
    "/x/фото набор",
    "/tmp/a(1)",
    "/tmp/lr=0.1",
    "/tmp/a#b",
    "/tmp/a&b",
    "/tmp/o'brien",
    "/tmp/a[1]",
    "/tmp/{a}",
    "a\"b'c",
    "back\\slash\\",
    "it\\'s",
    "1e5",
    "1_2",
    "007",
    "true",
    "[x]",
]


@pytest.mark.parametrize("text", ORDINARY_TEXT)
@pytest.mark.parametrize("equals", ["=", " = "])
def test_ordinary_text_is_taken_as_typed_and_handed_on_to_hydra_as_such(composer, text, equals):
    for multirun in (False, True):
        request = read_request(composer, [f"output{equals}{text}"], multirun=multirun)
        assert request.problems == ()
        assert [config.output for config in request.configs] == [text]
        cfg = composer.loader.load_configuration("run", list(request.hydra_words), RunMode.RUN)
        assert cfg.output == text


# What a shell hands over, with neither a comma, which separates values, nor what stands for something else.
@given(st.text(st.characters(codec="utf-8", exclude_characters=",$~\\'\"", exclude_categories=["C", "Z"]), min_size=1))
def test_any_text_without_a_meaning_of_its_own_is_taken_as_typed(composer, text):
    assume(text.lower() != "null" and not FUNCTION.match(text))
    (override,) = read_words([f"name={text}"], composer.loader).values.values()
    assert override.value() == text


def test_every_free_text_key_of_a_schema_is_known_as_such():
    free = {key for key, text in field_texts(RunSettings).items() if text.allowed.startswith(("a folder", "text"))}
    for group in GROUPS:
        for name in known_names(group) or ("",):
            texts = field_texts(group_schema(group, name))
            free |= {f"{group}.{key}" for key, text in texts.items() if text.allowed.startswith("text")}
    assert {key for key in free if key not in NAMES_OF_OTHERS} == set(TEXT_KEYS)


NAMES_OF_OTHERS = {*(f"{group}.name" for group in GROUPS), "backbone.timm_name"}


def test_several_ordinary_texts_are_a_sweep_and_keep_their_meaning(composer):
    found = configs(composer, "name=ä_${seed},1e5,'a, b',versuch-ö", multirun=True)
    assert [config.name for config in found] == ["ä_1", "1e5", "a, b", "versuch-ö"]
    with_home = configs(composer, "output=~/ä", "name=null")[0]
    assert (with_home.output, with_home.name) == (f"{Path.home()}/ä", None)


@pytest.mark.parametrize("word", ["null", "none", "None"])
def test_no_experiment_can_be_said(composer, word):
    (config,) = configs(composer, f"experiment={word}")
    assert config == configs(composer)[0]
    request = read_request(composer, [f"experiment=mvp_base,{word}"], multirun=True)
    assert [config.experiment for config in request.configs] == ["mvp_base", None]
    assert request.configs[1] == configs(composer)[0]


def test_keys_of_making_a_stream_are_refused_beside_a_saved_one(composer, tmp_path):
    for file in ("plan.npz", "plan.json"):
        (tmp_path / file).touch()
    plan = f"scenario.plan={tmp_path}"
    assert configs(composer, plan, "scenario=i_blurry", "scenario.view=merged", "scenario.seed=null")
    typed = ["n_sessions=9", "disjoint_class_pct=3", "mode=misa", "varying=false", "allow_home=false", "seed=4"]
    words = [f"scenario.{word}" for word in typed]
    assert problems(composer, plan, *words) == [f"{word}: the saved stream decides it; leave it out" for word in words]
    assert configs(composer, "scenario.plan=null", *words)


def test_a_word_that_cannot_be_read_brings_no_second_error(composer):
    for words in (
        ["protocol.memory_size=(5", "protocol.replay_batch=4"],
        ["strategy.pool_size=(20", "strategy.selection_size=15", "strategy.contrast=none"],
        ["protocol.optimizer=(sgd", "protocol.momentum=0.9"],
        ["strategy=(ncm", "strategy.insertion=prefix_tuning", "strategy.zzz=3"],
        ["strategy=mvpp", "strategy.selection_size=15"],
        ["strategy=zzzzzz", "protocol.memory_size=3", "protocol.replay_batch=3"],
        ["experiment=mvp_replya", "protocol.replay_batch=0"],
        ["strategy.pool_sise=20", "strategy.selection_size=15"],
    ):
        (problem,) = problems(composer, *words)
        assert problem.startswith(f"{words[0]}: ")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (
            "strategy=mpv",
            f"strategy=mpv: did you mean mvp? choose one of {METHODS}",
        ),
        (
            "strategy=MVP",
            f"strategy=MVP: did you mean mvp? choose one of {METHODS}",
        ),
        ("strategy=si_blurry", "strategy=si_blurry: si_blurry is a choice of scenario, write scenario=si_blurry; "),
        ("strategy=[mvp,ncm]", "strategy=[mvp,ncm]: choose one of"),
        ("strategy=null", "strategy=null: choose one of"),
        ("strategy=", "strategy=: choose one of"),
        ("protocol=7", "protocol=7: choose one of multi_lane_coco2014"),
        ("experiment=mvp_bas", "experiment=mvp_bas: did you mean mvp_base?"),
        ("strategy", "strategy: write key=value, for example strategy=mvp"),
        ("device=a=b", "device=a=b: cannot be read; put a value with special characters in two pairs of quotes"),
        ("protocol.replay_batch=(4", "protocol.replay_batch=(4: cannot be read"),
        ("output=/tmp/a,b", "output=/tmp/a,b: several values need -m, one run for each; text with a comma is written"),
        ("output=ä,,b", "output=ä,,b: cannot be read"),
        (
            "hydra.run.dir=/tmp/x",
            "hydra.run.dir=/tmp/x: would move files out of the run's folder; use output= and name=",
        ),
        ("hydra.output_subdir=x", "hydra.output_subdir=x: would move files out of the run's folder; use output= and"),
        (
            "hydra.job.chdir=true",
            "hydra.job.chdir=true: would move files out of the run's folder; use output= and name=",
        ),
        ("seed=9223372036854775808", "seed=9223372036854775808: must be a whole number of at least 0 and below 2^63"),
        ("protocol.lr=inf", "protocol.lr=inf: must be a finite number greater than 0 (default 0.005)"),
        ("batch_size=3", "batch_size=3: unknown key; did you mean protocol.stream_batch?"),
        ("~strategy", "~strategy: nothing can be taken out of a configuration"),
        ("~strategy.pool_size", "~strategy.pool_size: nothing can be taken out"),
        ("strategy@other=mvp", "strategy@other=mvp: a package (@) cannot be given; write strategy=..."),
        ("strategy.name=ncm", "strategy.name=ncm: set by the choice of strategy; write strategy=..."),
        ("strategy=mvp,ncm", "strategy=mvp,ncm: several choices need -m, one run for each"),
        ("seed=1,2", "seed=1,2: several values need -m, one run for each; a list is written seed=[1,2]"),
        ("name=${nothing}", "name: Interpolation key 'nothing' not found"),
        ("protocol.lr.x=1", "protocol.lr={x:1}: must be a number greater than 0 (default 0.005)"),
        ("hydra.foo=1", "hydra.foo=1: Hydra has no such setting; see --hydra-help"),
        ("hydra/launcher=nowhere", "hydra/launcher=nowhere: choose one of basic"),
        ("hydra/sweeper=basic,other", "hydra/sweeper=basic,other: Hydra's own settings cannot be swept"),
    ],
)
def test_a_word_that_cannot_be_used_is_one_line(composer, word, text):
    (problem,) = problems(composer, word)
    assert problem.startswith(text)
    assert "\n" not in problem


def test_a_model_of_timm_as_backbone_lists_its_weights_in_a_line_each(composer):
    (problem,) = problems(composer, "backbone=vit_base_patch16_224")
    first, *lines = problem.splitlines()
    assert first.startswith("backbone=vit_base_patch16_224: choose one of clip_base, ")
    assert first.endswith("; and set backbone.timm_name to one of")
    assert [line.split()[0] for line in lines] == same_model("vit_base_patch16_224")
    (problem,) = problems(composer, "backbone.timm_name=vit_base_patch16_224", "backbone.checkpoint=untrained")
    first, *lines = problem.splitlines()
    assert first.startswith("backbone.timm_name=vit_base_patch16_224: names no weights")
    assert [line.split()[0] for line in lines] == same_model("vit_base_patch16_224")


def test_a_misspelt_choice_does_not_hide_the_other_errors(composer):
    found = problems(
        composer, "strategy=mpv", "strategy.pool_sise=3", "seed=-1", "~name", "dataset=xyzxyz", "dataset.q=1"
    )
    assert [problem.split(":")[0] for problem in found] == [
        "~name",
        "strategy=mpv",
        "dataset=xyzxyz",
        "seed=-1",
        "strategy.pool_sise=3",
    ]


def test_an_experiment_yields_to_the_command_line(composer):
    (config,) = configs(composer, "experiment=mvp_mask", "strategy.logit_mask=false")
    assert not config.strategy.logit_mask


def test_an_experiment_with_the_choice_it_is_not_for_is_one_line(composer):
    line = "experiment=mvp_mask is a recipe for strategy=mvp; leave out strategy=ncm, or the experiment"
    assert problems(composer, "experiment=mvp_mask", "strategy=ncm") == [line]
    assert problems(composer, "experiment=mvp_mask", "strategy=ncm", "seed=-1", "strategy.x=1") == [
        line,
        "seed=-1: must be a whole number of at least 0 and below 2^63 (default 1)",
    ]
    assert configs(composer, "experiment=mvp_mask", "strategy=mvp", "scenario=iid", "protocol=si_blurry")


def test_a_sweep_is_every_combination_in_order(composer):
    found = configs(composer, "strategy=mvp,ncm", "seed=range(1,3)", "protocol.lr=0.1", multirun=True)
    assert [(config.strategy_name, config.seed, config.protocol.lr) for config in found] == [
        ("mvp", 1, 0.1),
        ("mvp", 2, 0.1),
        ("ncm", 1, 0.1),
        ("ncm", 2, 0.1),
    ]
    names = [config.experiment for config in configs(composer, "experiment=glob(mvp_without_*)", multirun=True)]
    assert names == [f"mvp_without_{part}" for part in ("contrastive", "feature_scaling", "focal", "mask")]


def test_every_combination_of_a_sweep_is_checked_and_each_line_comes_once(composer):
    found = problems(composer, "strategy=mvp,ncm,mpv", "seed=1,-2,-3", "protocol.lr=0", multirun=True)
    assert found == [
        "protocol.lr=0: must be a number greater than 0 (default 0.005)",
        "seed=-2: must be a whole number of at least 0 and below 2^63 (default 1)",
        "seed=-3: must be a whole number of at least 0 and below 2^63 (default 1)",
        f"strategy=mpv: did you mean mvp? choose one of {METHODS}",
    ]


def test_jobs_of_a_sweep_do_not_share_a_folder(composer):
    (problem,) = problems(composer, "seed=1,2", "name=x", multirun=True)
    assert problem.startswith("name=x: 2 runs of this sweep would share one folder")
    assert len(configs(composer, "seed=1,2", "name=x_${seed}", multirun=True)) == 2


def test_files_of_the_user_are_choices_and_their_missing_keys_have_defaults(own_composer):
    request = read_request(own_composer, ["strategy=mvp_small", "strategy.alpha=0.1"], multirun=False)
    (config,) = request.configs
    assert (config.strategy_name, config.strategy.pool_size, config.strategy.alpha) == ("mvp", 4, 0.1)
    # Hydra itself refuses a key that its files do not have, unless told to add it.
    assert "++strategy.alpha=0.1" in request.hydra_words


def test_errors_in_files_of_the_user_name_the_file_or_key(own_composer):
    assert problems(own_composer, "experiment=bad_choice") == [
        "a config file asks for strategy/mvpp, which does not exist; "
        f"choose one of {METHODS.replace('mvp,', 'mvp, mvp_small,')}"
    ]
    assert sorted(problems(own_composer, "experiment=bad_key")) == [
        "foo=1: unknown key; see --help for all keys (set by experiment=bad_key)",
        "protocol.lr=fast: must be a number greater than 0 (default 0.005) (set by experiment=bad_key)",
        "protocol.lrr=3: unknown key; did you mean protocol.lr? (set by experiment=bad_key)",
    ]
    (problem,) = problems(own_composer, "experiment=broken")
    assert "broken.yaml" in problem
    assert "\n" not in problem


def test_a_file_can_ask_for_a_sweep(own_composer):
    request = read_request(own_composer, ["experiment=sweep"], multirun=False)
    assert request.multirun
    assert [config.seed for config in request.configs] == [1, 2]


def test_a_run_starts_again_from_its_written_configuration(tmp_path):
    with open_composer() as composer:
        (first,) = configs(composer, "experiment=mvp_mask", "seed=5")
    (tmp_path / "config.yaml").write_text(first.to_yaml())
    with open_composer(config_dir=str(tmp_path), config_name="config") as composer:
        assert configs(composer) == (first,)
        # Hydra must not fall back to its own output folders.
        words = read_request(composer, ["strategy.pool_size=3"], multirun=False).hydra_words
        cfg = composer.loader.load_configuration("config", list(words), RunMode.RUN)
        assert (cfg.hydra.run.dir, cfg.hydra.output_subdir, cfg.strategy.pool_size) == (".", None, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"config_dir": "/nowhere/at/all"}, "--config-dir /nowhere/at/all: there is no such folder"),
        ({"config_name": "rum"}, "--config-name rum: no such file; did you mean run? choose one of run"),
        ({"config_name": "zzz"}, "--config-name zzz: no such file; choose one of run"),
    ],
)
def test_folders_and_primary_files_that_are_not_there(arguments, text):
    with pytest.raises(UserError) as caught, open_composer(**arguments):
        pass
    assert str(caught.value) == text
