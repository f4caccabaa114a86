"""The summary of decoded trials, against hand-worked numbers."""

import json

import numpy as np
import pytest

from mode_ssm.data.batch import TrialInfo
from mode_ssm.metrics import bootstrap_interval
from mode_ssm.tasks.results import TrialResult, mode_agreement, summarise
from mode_ssm.vocab import SIL


def result(
    number: int,
    *,
    session: str = "t15.2023.08.11",
    split: str = "val",
    sentence: str = "i am here",
    words: str | None = "i am here",
    phonemes: tuple[int, ...] = (1, 2, 3, SIL),
    **fields,
) -> TrialResult:
    info = TrialInfo(
        session=session,
        split=split,
        block=1,
        trial=number,
        path="data.hdf5",
        key=f"trial_{number:04d}",
        num_bins=100,
        num_phonemes=4,
        sentence=sentence,
    )
    return TrialResult(
        info=info,
        reference_phonemes=(1, 2, 3, SIL),
        reference_sentence=sentence,
        phonemes=phonemes,
        words=words,
        **fields,
    )


@pytest.fixture
def results() -> list[TrialResult]:
    return [
        result(0, words="i am there", phonemes=(1, 2, SIL), corpus="a", mode="silent", seen=True),
        result(1, sentence="yes", words="", corpus="a", mode="vocalised", seen=False),
        result(2, session="t15.2023.09.01", phonemes=(1, 5, 6, 7, SIL), corpus="b", mode=None, seen=False),
    ]


def test_rates_are_aggregate_edits_over_reference_symbols(results: list[TrialResult]) -> None:
    summary = summarise(results)
    assert (summary["split"], summary["num_trials"], summary["empty_hypotheses"]) == ("val", 3, 1)
    assert summary["per"] == pytest.approx((1 + 0 + 3) / 12)
    assert summary["wer"] == pytest.approx((1 + 1 + 0) / 7)
    assert summary["cer"] == pytest.approx((1 + 3 + 0) / (9 + 3 + 9))
    assert summary["counts"] == {
        "phonemes": {"edits": 4, "reference": 12},
        "words": {"edits": 2, "reference": 7},
    }
    assert summary["wer_ci"] == list(bootstrap_interval([1, 1, 0], [3, 1, 3]))


def test_groups_hold_their_own_trials_and_leave_unknown_labels_out(results: list[TrialResult]) -> None:
    summary = summarise(results)
    assert {name: g["num_trials"] for name, g in summary["by_session"].items()} == {
        "t15.2023.08.11": 2,
        "t15.2023.09.01": 1,
    }
    assert summary["by_session"]["t15.2023.09.01"]["per"] == pytest.approx(3 / 4)
    assert summary["by_corpus"]["a"]["wer"] == pytest.approx(2 / 4)
    assert {name: g["num_trials"] for name, g in summary["by_mode"].items()} == {"silent": 1, "vocalised": 1}
    assert summary["by_seen"]["seen"]["wer"] == pytest.approx(1 / 3)
    assert summary["by_seen"]["unseen"]["wer"] == pytest.approx(1 / 4)


def test_edits_of_groups_add_up_to_the_whole(results: list[TrialResult]) -> None:
    summary = summarise(results)
    for kind in ("by_session", "by_corpus", "by_seen"):
        total = sum(group["counts"]["phonemes"]["edits"] for group in summary[kind].values())
        assert total == summary["counts"]["phonemes"]["edits"]


def test_outputs_that_were_not_decoded_are_null_and_the_summary_is_json() -> None:
    summary = summarise([result(0, words=None), result(1, words=None, ctc_phonemes=(1, 2))])
    for key in ("wer", "wer_ci", "cer", "per_rnnt", "per_greedy_ctc", "wer_without_tta", "tta_wer_change"):
        assert summary[key] is None, key
    assert summary["per"] == 0
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_each_head_has_its_own_rate() -> None:
    summary = summarise([result(0, ctc_phonemes=(1, 2, 3), rnnt_phonemes=(SIL,), phonemes=(1, 2, 3, SIL))])
    assert (summary["per"], summary["per_greedy_ctc"], summary["per_rnnt"]) == (0, 0.25, 0.75)


def test_adaptation_is_compared_on_the_same_trials() -> None:
    results = [result(i, words="i am here", words_without_tta="i am there") for i in range(8)]
    summary = summarise(results)
    assert summary["wer"] == 0
    assert summary["wer_without_tta"] == pytest.approx(1 / 3)
    assert summary["tta_wer_change"] == pytest.approx({"value": -1 / 3, "low": -1 / 3, "high": -1 / 3})
    assert summary["by_session"]["t15.2023.08.11"]["wer_without_tta"] == pytest.approx(1 / 3)


def test_intervals_hold_the_rate_and_are_deterministic() -> None:
    rng = np.random.default_rng(0)
    results = [result(i, phonemes=(1, 2, 3, SIL) if rng.random() < 0.7 else (9, 9)) for i in range(60)]
    summary = summarise(results)
    low, high = summary["per_ci"]
    assert low < summary["per"] < high
    assert summary == summarise(results)


@pytest.mark.parametrize("splits", [(), ("val", "test")])
def test_a_summary_is_of_exactly_one_split(splits: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="exactly one split"):
        summarise([result(number, split=split) for number, split in enumerate(splits)])


def test_mode_agreement_takes_the_best_naming_of_the_latent_values() -> None:
    posteriors = [(0.1, 0.9), (0.2, 0.8), (0.7, 0.3), (0.4, 0.6), (0.9, 0.1)]
    modes = ["silent", "silent", "vocalised", "vocalised", None]
    trials = [result(i, mode=m, mode_posterior=p) for i, (m, p) in enumerate(zip(modes, posteriors, strict=True))]
    assert mode_agreement(trials) == {"accuracy": 0.75, "chance": 0.5, "num_trials": 4}
    assert mode_agreement(trials[-1:]) is None
