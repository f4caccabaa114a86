"""Scores and words of decoded trials; the sharing of trials is in tests/distributed."""

from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_model import build_baseline, make_batch

from mode_ssm.config import DecodeConfig, ModelKind
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.transducer_beam import beam_transducer
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.ops.transducer_loss import transducer_loss
from mode_ssm.tasks import word_decoding
from mode_ssm.tasks.decoding import HeadTransducer, _decode_batch, joint_scores
from mode_ssm.tasks.word_decoding import decode_words


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_joint_scores_of_a_ragged_batch_are_those_of_whole_lattices(model: MODE_SSM, ctc_weight: float) -> None:
    batch = make_batch([0, 1, 2])
    output = model.eval()(batch.features, batch.feature_lengths, batch.session_ids)
    log_probs = output.phoneme_logits.log_softmax(-1)
    projected = HeadTransducer(model).project(output.encoder_out)
    candidates = [[[3, 3, 9], [], [40]], [[1]], [[5, 7], [7, 5, 5, 2]]]
    found = joint_scores(model, log_probs, projected, output.lengths, candidates, ctc_weight)
    assert [len(scores) for scores in found] == [3, 1, 2]
    for row, of_trial in enumerate(candidates):
        frames = output.lengths[row : row + 1]
        trial = log_probs[row, : frames[0]], output.encoder_out[row : row + 1, : frames[0]]
        for place, candidate in enumerate(of_trial):
            targets, length = torch.tensor([candidate], dtype=torch.int64), torch.tensor([len(candidate)])
            ctc = F.ctc_loss(trial[0][:, None], targets, frames, length, reduction="none")
            rnnt = transducer_loss(model.joint_logits(trial[1], targets), targets, frames, length)
            expected = -(ctc_weight * ctc + (1 - ctc_weight) * rnnt)
            torch.testing.assert_close(found[row][place], expected[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_search_sees_the_log_probs_of_the_models_lattice(model: MODE_SSM) -> None:
    model.eval()
    generator = torch.Generator().manual_seed(0)
    encoder_out = torch.randn(1, 5, 16, generator=generator)
    targets = torch.tensor([[4, 8, 4]])
    head = HeadTransducer(model)
    contexts = model.predictor.contexts(targets)[0]
    lattice = model.joint_logits(encoder_out, targets)[0].log_softmax(-1)
    for t in range(5):
        frames = head.project(encoder_out[:, t]).expand(4, -1)
        torch.testing.assert_close(head.log_probs(frames, contexts), lattice[t])


@torch.no_grad()
def test_a_batch_decodes_as_its_trials_do_alone_and_takes_the_candidate_of_highest_score(model: MODE_SSM) -> None:
    config = DecodeConfig(rnnt_beam_size=3, rnnt_max_symbols=2)
    batch = make_batch([0, 1, 2])
    output = model.eval()(batch.features, batch.feature_lengths, batch.session_ids)
    head = HeadTransducer(model)
    for row, trial in enumerate(_decode_batch(model, batch, config, keep_projected=True)):
        frames = int(output.lengths[row])
        log_probs = output.phoneme_logits[row : row + 1, :frames].log_softmax(-1)
        projected = head.project(output.encoder_out[row : row + 1, :frames])
        beam = [list(hypothesis.labels) for hypothesis in beam_transducer(head, projected[0], 3, 2, nbest=3)]
        assert trial.info == batch.trials[row]
        assert trial.log_probs.shape == (frames, 41)
        np.testing.assert_allclose(trial.projected, projected[0], rtol=1e-5, atol=1e-5)
        assert trial.rnnt_phonemes == beam[0]
        candidates = [*beam, trial.ctc_phonemes]
        scores = joint_scores(model, log_probs, projected, output.lengths[row : row + 1], [candidates], 0.5)[0]
        assert trial.phonemes == candidates[int(scores.argmax())]
        assert trial.words is None
    without = _decode_batch(model, batch, config, keep_projected=False)
    assert [trial.projected for trial in without] == [None] * 3


@pytest.mark.parametrize("kind", [ModelKind.gru, ModelKind.transformer])
@torch.no_grad()
def test_a_model_without_transducer_says_what_greedy_ctc_says(kind: ModelKind) -> None:
    model, batch = build_baseline(kind).eval(), make_batch([0, 1, 2])
    output = model(batch.features, batch.feature_lengths, batch.session_ids)
    for row, trial in enumerate(_decode_batch(model, batch, DecodeConfig(), keep_projected=False)):
        classes = output.phoneme_logits[row, : output.lengths[row]].argmax(-1).tolist()
        collapsed = [c for c, previous in zip(classes, [0, *classes], strict=False) if c not in (0, previous)]
        assert trial.info == batch.trials[row]
        assert trial.log_probs.shape == (output.lengths[row], 41)
        assert trial.phonemes == trial.ctc_phonemes == collapsed
        assert trial.rnnt_phonemes is None
        assert trial.mode_posterior is None


class Sums:
    """Stands for a word decoder: the hypothesis of a trial names the sum of its input."""

    def decode(self, inputs: np.ndarray) -> list[Hypothesis]:
        return [Hypothesis(words=(str(int(inputs.sum())),), score=0.0, acoustic_score=0.0, lm_score=0.0)]


@pytest.mark.parametrize(
    ("cores", "trials", "workers"),
    # A trial takes a second. Two are decoded before it is known; the others are worth a worker for every 4 seconds.
    [(1, 30, None), (8, 2, None), (8, 8, 1), (8, 10, 2), (8, 19, 4), (3, 90, 3)],
)
def test_workers_start_where_they_are_worth_it_and_find_the_same(
    cores: int, trials: int, workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def decode_batch(
        decoder: Sums, inputs: Sequence[np.ndarray], processes: int, progress: Callable[[int, int], None]
    ) -> list[list[Hypothesis]]:
        asked.append(processes)
        for done in range(len(inputs)):
            progress(done + 1, len(inputs))
        return [decoder.decode(trial) for trial in inputs]

    seconds = count()
    monkeypatch.setattr(word_decoding, "decode_batch", decode_batch)
    monkeypatch.setattr(word_decoding, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    advanced: list[int] = []
    inputs = [np.full((5, 2), number) for number in range(trials)]
    nbest = decode_words(Sums(), inputs, cores, advanced.append)  # type: ignore[arg-type]
    assert [hypotheses[0].text for hypotheses in nbest] == [str(10 * number) for number in range(trials)]
    assert sum(advanced) == trials
    assert asked == ([] if workers is None else [workers])


def test_no_trials_have_no_words() -> None:
    assert decode_words(Sums(), [], 4) == []  # type: ignore[arg-type]
