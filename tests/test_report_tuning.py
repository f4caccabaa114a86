"""What a study of decoding scales leaves behind."""

import io
import struct

import numpy as np
import pytest
import yaml
from rich.console import Console

from mode_ssm.data.batch import TrialInfo
from mode_ssm.report_tuning import heat_maps, print_tuning, verdict, write_tuning_report
from mode_ssm.tasks.tuning import AXES, Setting, Study
from mode_ssm.tasks.tuning_results import summarise_study

UTTERANCES = 6
INFOS = [
    TrialInfo(
        session=f"s{n % 2}", split="val", block=1, trial=n, path="", key=f"trial_{n:04d}", num_bins=9, num_phonemes=1,
        sentence="a",
    )
    for n in range(UTTERANCES)
]  # fmt: skip


def study_of(settings: list[Setting], edits: list[int]) -> Study:
    axes = {name: sorted({getattr(setting, name) for setting in settings}) for name in AXES}
    trials = {setting: np.full(UTTERANCES, count) for setting, count in zip(settings, edits, strict=True)}
    references = ["five words are in it"] * UTTERANCES
    return Study(lambda tasks: iter(()), references, settings[0], axes, trials, lambda study: None, None)


@pytest.fixture
def better() -> Study:
    grid = [Setting(scale, 0.0, penalty) for scale in (0.5, 1.0, 2.0) for penalty in (0.0, 1.0)]
    return study_of(grid, [3, 3, 1, 2, 3, 4])


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n")
    return struct.unpack(">II", png[16:24])


def test_page_heat_map_and_settings_are_written(better, tmp_path):
    summary = summarise_study(better, INFOS)
    command = ["uv", "run", "evaluate_model.py", "checkpoint=runs/a b/best", "decode.acoustic_scale=1"]
    write_tuning_report(
        tmp_path, better, summary, title="a <run>", command=command,
        decode={"beam_size": 70, "acoustic_scale": 0.5, "word_bonus": 0.0, "blank_penalty": 0.0},
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode.yaml", "heatmap.png", "tune.html"]
    assert min(size((tmp_path / "heatmap.png").read_bytes())) > 300
    page = (tmp_path / "tune.html").read_text()
    assert "a &lt;run&gt;" in page
    assert "60.0&thinsp;%" in page  # 3 of 5 words
    assert "20.0&thinsp;%" in page
    assert "The gain holds on halves that did not choose: -40.0 points (-40.0 to -40.0)." in page
    assert page.count("data:image/png;base64,") == 1
    text = (tmp_path / "decode.yaml").read_text()
    assert yaml.safe_load(text) == {"beam_size": 70, "acoustic_scale": 1.0, "word_bonus": 0.0, "blank_penalty": 0.0}
    assert "# uv run evaluate_model.py 'checkpoint=runs/a b/best' decode.acoustic_scale=1\n" in text


def test_the_table_shows_default_choice_and_cross_check(better):
    output = io.StringIO()
    print_tuning(summarise_study(better, INFOS), Console(file=output, width=100))
    lines = {line.split()[0]: line.split() for line in output.getvalue().splitlines() if line.strip()}
    assert lines["default"] == ["default", "0.5", "0", "0", "60.0", "60.0–60.0"]
    assert lines["chosen"] == ["chosen", "1", "0", "0", "20.0", "20.0–20.0"]
    assert lines["cross-check"][1:] == ["20.0", "20.0–20.0"]


def test_a_gain_within_noise_says_so():
    settings = [Setting(1.0, 0.0, 0.0), Setting(2.0, 0.0, 0.0)]
    study = study_of(settings, [1, 1])
    study.trials[settings[1]] = np.array([0, 1, 1, 1, 1, 1])
    assert verdict(summarise_study(study, INFOS)).startswith("The gain is within noise: +0.0 points")
    del study.trials[settings[1]]
    assert verdict(summarise_study(study, INFOS)) == "No setting beats the default."


@pytest.mark.parametrize("axes", [(), ("word_bonus",), ("acoustic_scale", "word_bonus"), AXES])
def test_a_heat_map_is_drawn_of_however_many_axes_vary(axes):
    rng = np.random.default_rng(0)
    drawn = [{name: float(rng.random()) if name in axes else 0.5 for name in AXES} for _ in range(12 if axes else 1)]
    settings = [Setting(**values) for values in drawn]
    width, height = size(heat_maps(study_of(settings, rng.integers(0, 5, len(settings)).tolist())))
    assert height > 300
    assert width / height > max(1, len(axes) - 1)
