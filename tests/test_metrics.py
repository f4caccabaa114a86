"""Error rates against jiwer, hand-worked cases and the axioms of a metric."""

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_ssm.metrics import (
    ErrorRate,
    aggregate,
    align,
    bootstrap_interval,
    character_errors,
    edit_distance,
    paired_bootstrap_difference,
    phoneme_errors,
    seen_unseen_split,
    word_errors,
)
from mode_ssm.vocab import SIL, normalise_sentence, phonemes_to_ids

symbols = st.lists(st.integers(1, 4), max_size=9)
words = st.lists(st.sampled_from(["i", "you", "don't", "well-known", "oh"]), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("intention", "execution", 5),  # Jurafsky and Martin, with substitutions of cost one
        ("ab", "ba", 2),  # a transposition is two edits
    ],
)
def test_edit_distance_of_hand_worked_cases(reference: str, hypothesis: str, distance: int) -> None:
    assert edit_distance(reference, hypothesis) == distance


@given(symbols, symbols, symbols)
def test_edit_distance_is_a_metric(a: list[int], b: list[int], c: list[int]) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


@given(symbols, symbols)
def test_alignment_reads_both_sequences_and_costs_the_distance(a: list[int], b: list[int]) -> None:
    pairs = align(a, b)
    assert [left for left, _ in pairs if left is not None] == a
    assert [right for _, right in pairs if right is not None] == b
    assert sum(left != right for left, right in pairs) == edit_distance(a, b)


def test_alignment_names_substitution_insertion_and_deletion() -> None:
    assert align("abc", "axbc") == [("a", "a"), (None, "x"), ("b", "b"), ("c", "c")]
    assert align("abc", "ac") == [("a", "a"), ("b", None), ("c", "c")]
    assert align("abc", "axc") == [("a", "a"), ("b", "x"), ("c", "c")]


@given(st.lists(st.tuples(words, st.one_of(words, st.just(""))), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_word_and_character_rates_equal_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    wer = aggregate(word_errors(r, h) for r, h in pairs)
    cer = aggregate(character_errors(r, h) for r, h in pairs)
    assert wer.rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert cer.rate == pytest.approx(jiwer.cer(references, hypotheses))


@given(symbols.filter(bool), symbols)
@settings(deadline=None)
def test_phoneme_rate_equals_jiwer_on_tokens(reference: list[int], hypothesis: list[int]) -> None:
    expected = jiwer.wer(" ".join(map(str, reference)), " ".join(map(str, hypothesis)))
    assert phoneme_errors(reference, hypothesis).rate == pytest.approx(expected)


def test_rates_aggregate_edits_over_reference_symbols_and_do_not_average_rates() -> None:
    total = aggregate(
        [word_errors("yes", "no"), word_errors("i do not think so at all ever", "i do not think so at all ever")]
    )
    assert total == ErrorRate(edits=1, reference_length=9)
    assert total.rate == pytest.approx(1 / 9)


def test_sentences_are_compared_as_the_benchmark_normalises_them() -> None:
    assert word_errors("Don’t stop, Mary!", "don't stop mary").edits == 0
    assert word_errors("a well- known man", "a well known man").edits == 0
    assert word_errors("a well-known man", "a well known man") == ErrorRate(2, 3)
    assert character_errors("It's 5 o'clock.", "it's o'clock") == ErrorRate(0, len("it's o'clock"))


def test_sil_counts_as_a_symbol_on_both_sides() -> None:
    reference = [*phonemes_to_ids(["AY"]), SIL, *phonemes_to_ids(["D", "UW"]), SIL]
    without_sil = [symbol for symbol in reference if symbol != SIL]
    assert phoneme_errors(reference, without_sil) == ErrorRate(2, 5)


@pytest.mark.parametrize("bad", [0, 41, -1])
def test_phoneme_errors_refuse_blank_and_unknown_classes(bad: int) -> None:
    with pytest.raises(ValueError, match=f"hypothesis holds class {bad}"):
        phoneme_errors([1, 2], [1, bad])


def test_a_rate_over_no_reference_is_nan_and_its_interval_an_error() -> None:
    assert np.isnan(ErrorRate(2, 0).rate)
    with pytest.raises(ValueError, match="no reference symbols"):
        bootstrap_interval([2], [0])


def test_bootstrap_interval_matches_the_binomial_one_where_trials_are_single_words() -> None:
    edits = [1] * 60 + [0] * 240
    low, high = bootstrap_interval(edits, [1] * 300, samples=4000)
    standard_error = np.sqrt(0.2 * 0.8 / 300)
    assert low == pytest.approx(0.2 - 1.96 * standard_error, abs=0.006)
    assert high == pytest.approx(0.2 + 1.96 * standard_error, abs=0.006)


def test_bootstrap_interval_equals_resampling_trial_by_trial() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 12, 80)
    edits = rng.binomial(lengths, 0.3)
    rates = []
    for _ in range(3000):
        drawn = rng.integers(0, 80, 80)
        rates.append(edits[drawn].sum() / lengths[drawn].sum())
    expected = np.quantile(rates, [0.05, 0.95])
    assert bootstrap_interval(edits, lengths, samples=3000, level=0.9) == pytest.approx(tuple(expected), abs=0.01)


def test_bootstrap_is_deterministic_from_its_seed_and_exact_without_spread() -> None:
    rng = np.random.default_rng(5)
    lengths = rng.integers(3, 17, 90)
    edits = rng.binomial(lengths, 0.25)
    assert bootstrap_interval(edits, lengths, seed=3) == bootstrap_interval(edits, lengths, seed=3)
    assert bootstrap_interval(edits, lengths, seed=3) != bootstrap_interval(edits, lengths, seed=4)
    assert bootstrap_interval([1, 2, 3], [2, 4, 6]) == (0.5, 0.5)


def test_paired_difference_cancels_what_both_systems_share() -> None:
    rng = np.random.default_rng(0)
    lengths = np.full(200, 10)
    hard = rng.integers(0, 9, 200)
    difference = paired_bootstrap_difference(hard + 1, hard, lengths)
    assert difference == pytest.approx((-0.1, -0.1, -0.1))
    low, high = bootstrap_interval(hard, lengths)
    assert high - low > 0.05  # each rate alone is uncertain, their difference is not


def test_paired_difference_of_unrelated_noise_spans_zero() -> None:
    rng = np.random.default_rng(2)
    lengths = np.full(300, 8)
    value, low, high = paired_bootstrap_difference(rng.binomial(lengths, 0.2), rng.binomial(lengths, 0.2), lengths)
    assert low < 0 < high
    assert low < value < high


def test_seen_sentences_are_found_after_normalisation() -> None:
    mask = seen_unseen_split(["How are you?", "I'm fine."], ["how are you", "I’m fine", "how are we"])
    assert mask.tolist() == [True, True, False]
    assert mask.dtype == bool


@given(words, words)
def test_normalising_twice_changes_no_error_count(reference: str, hypothesis: str) -> None:
    shouted = reference.upper() + " !"
    assert word_errors(shouted, hypothesis) == word_errors(normalise_sentence(shouted), hypothesis)
