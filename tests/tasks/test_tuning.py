"""Studies of decoding scales on utterances for which the best scale is known."""

import json
import sys

import numpy as np
import pytest

from mode_ssm.data.batch import TrialInfo
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.decode.delayed_fusion import DelayedFusion
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.scorer import BatchScorer
from mode_ssm.metrics import paired_bootstrap_difference
from mode_ssm.tasks.tuning import AXES, Setting, Study, open_study
from mode_ssm.tasks.tuning_methods import around_best, grid_search, optuna_search
from mode_ssm.tasks.tuning_results import cross_check, finished_trials, halves, summarise_study, write_study
from mode_ssm.vocab import NUM_CLASSES

LEXICON = Lexicon({"a": [(1,)], "b": [(2,)]})
LM = NGramLM.estimate(["a a a a a a b"], 1, LEXICON.words)
GAP = LM.unigram("a") - LM.unigram("b")  # how much the language model likes "a" more
LOW, HIGH = 1.0, 1.2  # only acoustic scales in between decode everything
FIXED = {"word_bonus": [0.0], "blank_penalty": [0.0], "neural_weight": [0.0]}
AXIS = {"acoustic_scale": [0.25, 0.75, 1.5], **FIXED}


def frame(gap: float) -> np.ndarray:
    """One frame (1, V) in which phone 2 is `gap` above phone 1."""
    log_probs = np.full((1, NUM_CLASSES), -50.0, np.float32)
    log_probs[0, 1:3] = -gap / 2, gap / 2
    return log_probs


# "b" needs an acoustic scale above LOW, "a" one below HIGH.
UTTERANCES = [frame(GAP / LOW), frame(GAP / HIGH)] * 20
REFERENCES = ["b", "a"] * 20


def decoder(**options) -> CtcWordDecoder:
    return CtcWordDecoder(LEXICON, LM, **{"beam_size": 10, "acoustic_scale": 0.75, **options})


def study_of(trials: dict[Setting, list[int]], default: Setting, lengths: list[int]) -> Study:
    """A study whose trials are given; nothing is decoded."""
    axes = {name: sorted({getattr(setting, name) for setting in trials}) for name in AXES}
    references = [" ".join("w" * length) for length in lengths]
    edits = {setting: np.array(values) for setting, values in trials.items()}
    return Study(lambda tasks: iter(()), references, default, axes, edits, lambda study: None, None)


def info(session: str, block: int = 1, trial: int = 0) -> TrialInfo:
    return TrialInfo(
        session=session, split="val", block=block, trial=trial, path="", key=f"trial_{trial:04d}", num_bins=9,
        num_phonemes=1, sentence="a",
    )  # fmt: skip


def test_the_grid_finds_the_scale_between_two_of_its_values():
    with open_study(decoder(), UTTERANCES, REFERENCES, AXIS) as study:
        grid_search(study, refinements=0)
        assert [study.wer(Setting(scale, 0.0, 0.0)) for scale in AXIS["acoustic_scale"]] == [0.5, 0.5, 0.5]
        assert study.best() == study.default == Setting(0.75, 0.0, 0.0)
        grid_search(study, refinements=1)
        assert study.best() == Setting(1.125, 0.0, 0.0)
        assert study.wer(study.best()) == 0


def test_the_second_round_looks_halfway_to_the_neighbours_of_every_axis_that_varies():
    settings = [Setting(scale, bonus, 1.0) for scale in (0.5, 1.0, 2.0) for bonus in (-1.0, 1.0)]
    study = study_of({setting: [setting != settings[2]] for setting in settings}, settings[0], [1])
    scales, bonuses = (1.0, 0.75, 1.5), (-1.0, 0.0)
    assert around_best(study, settings) == [Setting(scale, bonus, 1.0) for scale in scales for bonus in bonuses]


def test_worker_processes_change_nothing():
    found = []
    for processes in (1, 2):
        with open_study(decoder(), UTTERANCES, REFERENCES, AXIS, processes=processes) as study:
            grid_search(study, refinements=1)
        found.append({setting: edits.tolist() for setting, edits in study.trials.items()})
    assert found[0] == found[1]
    assert list(found[0]) == list(found[1])


def test_a_setting_means_what_the_decoder_means_by_it():
    rng = np.random.default_rng(0)
    lexicon = Lexicon({word: [tuple(rng.integers(1, 5, 2))] for word in "abcdef"})
    lm = NGramLM.estimate([" ".join(rng.choice(lexicon.words, 5)) for _ in range(30)], 2, lexicon.words)
    log_probs = [np.log(rng.dirichlet(np.full(NUM_CLASSES, 0.3), 14)).astype(np.float32) for _ in range(40)]
    references = [" ".join(rng.choice(lexicon.words, 4)) for _ in log_probs]
    setting = Setting(0.4, 0.7, 1.5)
    with open_study(CtcWordDecoder(lexicon, lm, lm_scale=0.8), log_probs, references, AXIS) as study:
        study.run([setting])
    by_hand = CtcWordDecoder(lexicon, lm, lm_scale=0.8, acoustic_scale=0.4, word_bonus=0.7, blank_penalty=1.5)
    hypotheses = [by_hand.decode(utterance)[0].words for utterance in log_probs]
    pairs = zip(hypotheses, references, strict=True)
    assert [edits == 0 for edits in study.trials[setting]] == [" ".join(found) == given for found, given in pairs]
    assert len({len(words) for words in hypotheses}) > 1


class Prefers(BatchScorer):
    """log P = -cost for every word of a sentence. `sentences`: how many were scored whole."""

    def __init__(self, **costs: float) -> None:
        self.costs, self.sentences = costs, 0

    def start(self):
        return ()

    def advance(self, states, words):
        return -np.array([self.costs[word] for word in words]), [()] * len(words)

    def end(self, states):
        return np.zeros(len(states))

    def sentence_log_probs(self, sentences):
        self.sentences += len(sentences)
        return -np.array([sum(self.costs[word] for word in words) for words in sentences])


@pytest.mark.parametrize("every", [0, 1])
def test_the_weight_of_a_second_model_is_tuned_as_the_decoder_applies_it(every):
    """It likes both words alike, so a weight of w leaves (1 - w) of the gap: 0.8 / (1 - w) must lie in LOW .. HIGH."""
    second = Prefers(a=1.0, b=1.0)
    axes = AXIS | {"acoustic_scale": [0.8], "neural_weight": [0.0, 0.1, 0.3, 0.6]}
    fused = decoder(acoustic_scale=0.8, delayed=DelayedFusion(second, 0.1, every))
    with open_study(fused, UTTERANCES, REFERENCES, axes) as study:
        assert study.default == Setting(0.8, 0.0, 0.0, 0.1)
        grid_search(study, refinements=0)
    assert {setting.neural_weight: study.wer(setting) for setting in study.trials} == {
        0.0: 0.5, 0.1: 0.5, 0.3: 0.0, 0.6: 0.5,
    }  # fmt: skip
    for setting, edits in study.trials.items():
        weighed = decoder(acoustic_scale=0.8, delayed=DelayedFusion(second, setting.neural_weight, every))
        words = [weighed.decode(utterance)[0].text for utterance in UTTERANCES]
        assert edits.tolist() == [int(word != given) for word, given in zip(words, REFERENCES, strict=True)]


def test_a_second_model_that_comes_last_scores_a_sentence_once_for_all_settings_and_needs_one_search_for_all_weights():
    second, searches = Prefers(a=1.0, b=1.0), []
    axes = AXIS | {"neural_weight": [0.0, 0.5, 1.0]}
    fused = decoder(delayed=DelayedFusion(second, 0.5, every=0))
    with open_study(fused, UTTERANCES, REFERENCES, axes, on_trial=searches.append) as study:
        grid_search(study, refinements=0)
    assert len(study.trials) == 9
    assert len(searches) == 3
    assert second.sentences == 2  # "a" and "b"


def test_of_equal_settings_the_one_nearest_to_the_default_is_chosen():
    default = Setting(1.0, 0.0, 0.0)
    trials = {
        default: [1, 1],
        Setting(2.0, 0.0, 0.0): [1, 0],
        Setting(1.0, 2.0, 0.0): [0, 1],
        Setting(1.5, 0.0, 0.0): [0, 1],
    }
    study = study_of(trials, default, [1, 1])
    assert study.distance(Setting(1.5, 1.0, 0.0)) == pytest.approx(0.5 + 0.5)  # axes of length 1 and 2
    assert study.best() == Setting(1.5, 0.0, 0.0)
    assert study.best(part=np.array([False, True])) == Setting(2.0, 0.0, 0.0)


def test_each_half_is_decoded_with_the_best_setting_of_the_other():
    default, left, right = (Setting(scale, 0.0, 0.0) for scale in (1.0, 0.5, 2.0))
    trials = {default: [2, 2, 2, 2], left: [0, 1, 3, 4], right: [5, 6, 1, 0]}
    study = study_of(trials, default, [10, 10, 10, 10])
    check = cross_check(study, np.array([True, True, False, False]))
    assert check.chosen == (left, right)
    assert check.edits.tolist() == [5, 6, 3, 4]  # `right` on the first half, `left` on the second
    infos = [info("s0"), info("s0", 2), info("s1"), info("s1", 2)]
    summary = summarise_study(study, infos, seed=3)
    assert summary["default"]["wer"] == 8 / 40
    assert summary["chosen"]["acoustic_scale"] == 1.0  # 8 edits in all, as `left`, but the default
    assert summary["cross_check"]["wer"] == 18 / 40
    assert summary["cross_check"]["halves_of"] == "sessions"
    expected = paired_bootstrap_difference([2, 2, 2, 2], [5, 6, 3, 4], [10] * 4, seed=3)
    assert summary["cross_check"]["difference"] == expected._asdict()
    assert summary["within_noise"]


def test_a_gain_that_every_utterance_shows_is_no_noise():
    default, better = Setting(1.0, 0.0, 0.0), Setting(2.0, 0.0, 0.0)
    study = study_of({default: [2] * 8, better: [1] * 8}, default, [4] * 8)
    summary = summarise_study(study, [info("s0", block) for block in range(8)])
    assert not summary["within_noise"]
    assert (
        summary["difference"] == summary["cross_check"]["difference"] == {"value": -0.25, "low": -0.25, "high": -0.25}
    )
    assert summary["at_the_edge"] == ["acoustic_scale"]


@pytest.mark.parametrize(
    ("infos", "first", "unit"),
    [
        ([info("s0"), info("s1"), info("s2"), info("s0")], [True, False, True, True], "sessions"),
        ([info("s0", 7), info("s0", 12), info("s0", 7)], [True, False, True], "blocks"),
        ([info("s0", 1, 5), info("s0", 1, 6)], [True, False], "trials"),
    ],
)
def test_halves_part_the_largest_unit_of_which_there_are_two(infos, first, unit):
    found, name = halves(infos)
    assert (found.tolist(), name) == (first, unit)


def test_an_interrupted_study_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    file, made_for = tmp_path / "tune.json", {"checkpoint": "x", "search": "y"}

    def run(stop_after: int | None) -> tuple[Study, int]:
        searched = []

        def on_trial(study: Study) -> None:
            write_study(file, made_for, study, {})
            searched.append(study)
            if len(searched) == stop_after:
                raise KeyboardInterrupt

        trials = finished_trials(file, made_for)
        with open_study(decoder(), UTTERANCES, REFERENCES, AXIS, trials=trials, on_trial=on_trial) as study:
            grid_search(study, refinements=2)
        return study, len(searched)

    whole, all_searches = run(None)
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(3)
    assert len(finished_trials(file, made_for)) == 3
    resumed, searches = run(None)
    assert searches == all_searches - 3
    assert {s: e.tolist() for s, e in resumed.trials.items()} == {s: e.tolist() for s, e in whole.trials.items()}
    again, searches = run(None)
    assert searches == 0
    assert again.best() == whole.best()


def test_the_file_holds_trials_and_summary_and_one_of_something_else_is_not_used(tmp_path, caplog):
    file = tmp_path / "tune.json"
    study = study_of({Setting(1.0, 0.1, 0.0): [1, 2]}, Setting(1.0, 0.1, 0.0), [3, 3])
    write_study(file, {"checkpoint": "x", "search": "y"}, study, {"within_noise": True})
    content = json.loads(file.read_text())
    assert content["within_noise"] is True
    assert content["trials"][0]["wer"] == 0.5
    (setting,) = finished_trials(file, {"checkpoint": "x", "search": "y"})
    assert setting == Setting(1.0, 0.1, 0.0)
    assert finished_trials(file, {"checkpoint": "x", "search": "z"}) == {}
    assert "was made with another search; the study begins afresh" in caplog.text
    file.write_text("{")
    assert finished_trials(file, {"checkpoint": "x"}) == {}
    assert "cannot be read" in caplog.text


def test_without_optuna_its_method_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    default = Setting(1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"^method=optuna needs the sweep extra: uv sync --extra sweep; method=grid"):
        optuna_search(study_of({default: [0]}, default, [1]), trials=3, seed=0, at_once=1)


def test_optuna_finds_the_scale_the_same_way_every_time_and_goes_on_from_earlier_trials():
    pytest.importorskip("optuna", exc_type=ImportError)
    found = []
    for _ in range(2):
        with open_study(decoder(), UTTERANCES, REFERENCES, AXIS) as study:
            optuna_search(study, trials=25, seed=0, at_once=2)
        assert len(study.trials) == 25
        assert study.wer(study.best()) == 0
        found.append(list(study.trials))
    assert found[0] == found[1]
    with open_study(decoder(), UTTERANCES, REFERENCES, AXIS, trials=study.trials) as longer:
        optuna_search(longer, trials=27, seed=0, at_once=2)
    assert list(longer.trials)[:25] == found[0]
    assert len(longer.trials) == 27


def test_optuna_has_nothing_to_draw_where_every_axis_is_fixed():
    pytest.importorskip("optuna", exc_type=ImportError)
    with open_study(decoder(), UTTERANCES, REFERENCES, AXIS | {"acoustic_scale": [1.1]}) as study:
        optuna_search(study, trials=5, seed=0, at_once=1)
    assert list(study.trials) == [study.default]
