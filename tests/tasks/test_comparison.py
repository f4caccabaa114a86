"""Tables of error rates by model and group, on results made by hand."""

import pytest

from mode_ssm.data.batch import TrialInfo
from mode_ssm.tasks.comparison import MeasuredTrial, compare, days_from_training, distance_label
from mode_ssm.tasks.results import TrialResult

TRAINING = ["t15.2023.08.11", "t15.2023.09.01"]


def run(per: list[int], wer: list[int] | None = None, lengths: tuple[int, ...] = (4, 6, 10)) -> list[MeasuredTrial]:
    """Three trials: two of one session, the last seen in training and ten days after it."""
    places = [("t15.2023.08.11", False, 0), ("t15.2023.08.11", True, 0), ("t15.2023.09.11", True, 10)]
    return [
        MeasuredTrial(
            name=f"{session}/test/trial_{number:04d}",
            session=session,
            corpus="conversation" if number else None,
            mode=None,
            seen=seen,
            days=days,
            per=(per[number], lengths[number]),
            per_greedy_ctc=None,
            wer=None if wer is None else (wer[number], 2),
        )
        for number, (session, seen, days) in enumerate(places)
    ]


def test_rates_are_means_over_seeds_of_edits_over_symbols_and_differences_are_to_the_first_row():
    compared = compare({"a": [run([1, 2, 3]), run([3, 2, 5])], "b": [run([0, 1, 1])]}, samples=50)
    a, b = compared["a"]["all"], compared["b"]["all"]
    assert a["per"]["per_seed"] == [6 / 20, 10 / 20]
    assert a["per"]["value"] == pytest.approx(8 / 20)
    assert a["per"]["difference"] is None
    assert (b["per"]["value"], b["per"]["difference"]["value"]) == pytest.approx((2 / 20, -6 / 20))
    assert b["per"]["difference"]["low"] <= -6 / 20 <= b["per"]["difference"]["high"] < 0
    assert a["per"]["ci"][0] < 8 / 20 < a["per"]["ci"][1]
    assert a["num_trials"] == 3


def test_groups_hold_their_own_trials():
    compared = compare({"a": [run([1, 2, 3])], "b": [run([0, 1, 1])]}, samples=20)
    a = compared["a"]
    assert {name: (of["num_trials"], of["per"]["value"]) for name, of in a["by_seen"].items()} == {
        "seen": (2, pytest.approx(5 / 16)), "unseen": (1, pytest.approx(1 / 4))
    }  # fmt: skip
    assert list(a["by_distance"]) == ["0 days", "8-30 days"]
    assert compared["b"]["by_distance"]["8-30 days"]["per"]["difference"]["value"] == pytest.approx(-2 / 10)
    assert {name: of["days"] for name, of in a["by_session"].items()} == {"t15.2023.08.11": 0, "t15.2023.09.11": 10}
    assert {name: of["num_trials"] for name, of in a["by_corpus"].items()} == {"conversation": 2}
    assert a["by_mode"] == {}


def test_a_metric_that_a_row_lacks_is_none_and_has_no_difference_elsewhere():
    compared = compare({"a": [run([1, 2, 3])], "b": [run([1, 2, 3], wer=[1, 0, 1])]}, samples=20)
    assert compared["a"]["all"]["wer"] is None
    assert compared["b"]["all"]["wer"]["value"] == pytest.approx(2 / 6)
    assert compared["b"]["all"]["wer"]["difference"] is None


def test_runs_on_other_trials_are_refused():
    with pytest.raises(ValueError, match=r"^b was evaluated on other trials than a; compare on one dataset$"):
        compare({"a": [run([1, 2, 3])], "b": [run([1, 2, 3])[:2]]}, samples=20)


def test_days_from_the_nearest_training_session():
    assert days_from_training("t15.2023.08.11", TRAINING) == 0
    assert days_from_training("t15.2023.08.28", TRAINING) == 4
    assert days_from_training("t15.2024.09.01", TRAINING) == 366
    assert days_from_training("fsdd-theo", TRAINING) is None
    assert days_from_training("t15.2024.09.01", ["fsdd-theo"]) is None
    assert [distance_label(days) for days in (None, 0, 1, 7, 8, 90, 91)] == [
        None, "0 days", "1-7 days", "1-7 days", "8-30 days", "31-90 days", "over 90 days",
    ]  # fmt: skip


def test_a_result_is_measured_by_the_edits_of_its_outputs():
    info = TrialInfo(session="t15.2023.08.13", split="val", block=1, trial=0, path="", key="trial_0000", num_bins=9,
                     num_phonemes=3, sentence="a b")  # fmt: skip
    result = TrialResult(info=info, reference_phonemes=[1, 2, 3], reference_sentence="a b", phonemes=[1, 3],
                         ctc_phonemes=[4], words="a c d", corpus="x", mode="silent", seen=True)  # fmt: skip
    assert MeasuredTrial.from_result(result, TRAINING) == MeasuredTrial(
        name="t15.2023.08.13/val/trial_0000", session="t15.2023.08.13", corpus="x", mode="silent", seen=True, days=2,
        per=(1, 3), per_greedy_ctc=(3, 3), wer=(2, 2),
    )  # fmt: skip
