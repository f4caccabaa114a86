"""The command line of scripts/compare.py."""

from dataclasses import fields

import pytest

from mode_ssm.compose import load_compare_config
from mode_ssm.config import CompareConfig, TrainConfig

ROWS = "experiments=[sim_mode_ssm,masked]"
MASKED = 'settings.masked=["experiment=sim_mode_ssm","data.augment.time_masks=20","optim=adamw"]'


def test_every_row_has_its_experiment_what_is_given_to_all_and_over_it_its_own():
    config, rows = load_compare_config(
        [ROWS, MASKED, "seeds=[3]", "tune_lr.sim_mode_ssm=[1e-3,3e-3]", "data.root=x", "data.augment.time_masks=2"]
    )
    assert isinstance(config, CompareConfig)
    assert (config.seeds, config.tune_lr) == ([3], {"sim_mode_ssm": [1e-3, 3e-3]})
    assert rows == {
        "sim_mode_ssm": ["experiment=sim_mode_ssm", "data.root=x", "data.augment.time_masks=2"],
        "masked": ["data.root=x", "experiment=sim_mode_ssm", "data.augment.time_masks=20", "optim=adamw"],
    }
    assert not {field.name for field in fields(CompareConfig)} & {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiments=[sim_mode_ssm,sim_mode_ssm]"],
         "experiments=['sim_mode_ssm', 'sim_mode_ssm']: expected one or more, each once"),
        ([ROWS, MASKED, "seeds=[]"], "seeds=[]: expected one or more, each once"),
        ([ROWS, MASKED, "seeds=[-1]"], "seeds=[-1]: expected 0 or above"),
        ([ROWS, MASKED, "seed=1"], "'seed=1': the comparison sets seed of every run itself"),
        ([ROWS, MASKED, "resume=true"], "'resume=true': the comparison sets resume of every run itself"),
        ([ROWS, MASKED, "experiment=quickstart"], "experiment=... is one training; write experiments=[...]"),
        ([ROWS, MASKED, "model.d_modle=3"], "unknown key 'model.d_modle'; did you mean 'model.d_model'?"),
        ([ROWS, MASKED, "name=../x"], "'../x': expected a folder name of letters, digits and _ - ."),
        ([ROWS, MASKED, "processes=0"], "processes=0: expected at least 1"),
        ([ROWS, MASKED, "tune_lr.gru=[1e-3]"],
         "tune_lr.gru: no row of that name; experiments=['sim_mode_ssm', 'masked']"),
        ([ROWS, MASKED, "tune_lr.masked=[0.0]"],
         "tune_lr.masked=[0.0]: expected one value or more, each once and above 0"),
        ([ROWS, MASKED, "tune_lr.masked=[1e-3]", "optim.lr=1"],
         "'optim.lr=1': tune_lr chooses the learning rate of masked"),
        (["experiments=[sim_gru_baselin]"], "unknown experiment 'sim_gru_baselin'; did you mean 'sim_gru_baseline'?"),
        ([], "missing value for 'experiments' (rows of the table; differences are to the first); "
             "give experiments=..."),
        ([ROWS, MASKED, "-m"],
         "--multirun is for train.py; experiments=[...] and seeds=[...] say what is compared"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared)
        load_compare_config(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_help_tells_of_rows_and_learning_rates(capsys):
    with pytest.raises(SystemExit):
        load_compare_config(["--help"])
    printed = capsys.readouterr().out
    assert "uv run scripts/compare.py experiments=[sim_mode_ssm,sim_gru_baseline]" in printed
    assert "tune_lr.<row>=[1e-3,3e-3]" in printed
    assert "seeds=[0,1,2]" in printed
