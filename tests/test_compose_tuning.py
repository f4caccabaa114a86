"""The command line of scripts/tune_decoding.py."""

from dataclasses import fields

import pytest

from mode_ssm.compose import load_tune_config
from mode_ssm.config import OVERRIDABLE_SECTIONS, TuneConfig, TuneMethod


def test_own_keys_are_parted_from_those_of_the_checkpoint():
    config, sections = load_tune_config(
        [
            "checkpoint=runs/x/best",
            "method=optuna",
            "trials=7",
            "axes.word_bonus=[0,0.5]",
            "lm.order=2",
            "decode.nbest=3",
        ]
    )
    assert isinstance(config, TuneConfig)
    assert (config.split, config.method, config.trials, config.axes.word_bonus) == (
        "val",
        TuneMethod.optuna,
        7,
        [0, 0.5],
    )
    assert sections == ["lm.order=2", "decode.nbest=3"]
    assert not {field.name for field in fields(TuneConfig)} & set(OVERRIDABLE_SECTIONS)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("split=test", "split=test: scales chosen on the test split make its error rates too good to be true; "
                       "tune with split=val"),
        ("split=valid", "split=valid: expected one of train, val, test"),
        ("method=random", "method=random: expected one of grid, optuna"),
        ("trials=0", "trials=0: expected at least 1"),
        ("refinements=-1", "refinements=-1: expected at least 0"),
        ("processes=-1", "processes=-1: expected at least 0"),
        ("axes.acoustic_scale=[]", "axes.acoustic_scale=[]: expected one value or more, each above 0"),
        ("axes.acoustic_scale=[0,1]", "axes.acoustic_scale=[0.0, 1.0]: expected one value or more, each above 0"),
        ("axes.word_bonus=[nan]", "axes.word_bonus=[nan]: expected one value or more, each a finite number"),
        ("axes.neural_weight=[0.5,1.5]", "axes.neural_weight=[0.5, 1.5]: expected one value or more, each from 0 to 1"),
        ("axes.accoustic_scale=[1]", "unknown key 'axes.accoustic_scale'; did you mean 'axes.acoustic_scale'?"),
        ("model.d_model=3", "'model.d_model=3': the model and its training come from the checkpoint; sections that can "
                            f"be overridden: {', '.join(OVERRIDABLE_SECTIONS)}"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(argument, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared)
        load_tune_config(["checkpoint=x", argument])
    assert str(error.value) == message


def test_the_help_names_the_script_and_its_keys(capsys):
    with pytest.raises(SystemExit):
        load_tune_config(["--help"])
    printed = capsys.readouterr().out
    assert "uv run scripts/tune_decoding.py checkpoint=runs/quickstart/best" in printed
    assert "axes.blank_penalty=[0.0,1.0,2.0,4.0]" in printed
