"""The loss terms: their values by hand, their additivity over batches, where their gradients go."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_model import BLOCK_ROWS, PHASES, build_baseline, build_model, make_batch

from mode_ssm.config import LossNormaliser, LossWeights, ModelKind, PhaseConfig
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.ops.transducer_loss import transducer_loss_reference
from mode_ssm.tasks.transcription_objective import (
    BLOCK_SHARPNESS,
    CtcObjective,
    TranscriptionObjective,
    loss_weights,
)


def objective_of(model: MODE_SSM, phase: PhaseConfig) -> TranscriptionObjective:
    return TranscriptionObjective(model, phase, BLOCK_ROWS, corruption_std=0.5)


def test_terms_are_those_with_weight_and_counts_are_known_beforehand(model: MODE_SSM) -> None:
    batch = make_batch([0, 1, 2])
    expected = {
        "ctc_warmup": {"ctc": 15.0},
        "joint": {"ctc": 15.0, "rnnt": 15.0},
        "mode": {"ctc": 15.0, "rnnt": 15.0, "mode_block": 3.0, "mode_information": 3.0},
        "flow_bridge": {"ctc": 15.0, "rnnt": 15.0, "flow": 20.0 + 12.0 + 16.0},
    }
    for name, phase in PHASES.items():
        objective = objective_of(model, phase)
        counts = {term: float(count) for term, (_, count) in objective(batch).items()}
        assert counts == objective.counts(batch) == expected[name]
        assert set(counts) == set(loss_weights(phase))


def test_ctc_and_transducer_sums_equal_one_trial_at_a_time(model: MODE_SSM) -> None:
    batch = make_batch([0, 1, 2, 3])
    terms = objective_of(model, PHASES["joint"]).eval()(batch)
    ctc = rnnt = 0.0
    for row in range(4):
        alone = make_batch([row])
        output = model.eval()(alone.features, alone.feature_lengths, alone.session_ids, denoise=False)
        log_probs = output.phoneme_logits.log_softmax(-1)[0]
        ctc += F.ctc_loss(log_probs, alone.targets[0], output.lengths, alone.target_lengths, reduction="sum").item()
        logits = model.joint_logits(output.encoder_out, alone.targets)
        rnnt += transducer_loss_reference(logits, alone.targets, output.lengths, alone.target_lengths).item()
    assert terms["ctc"][0].item() == pytest.approx(ctc, rel=1e-5)
    assert terms["rnnt"][0].item() == pytest.approx(rnnt, rel=1e-5)


@pytest.mark.parametrize("name", ["ctc_warmup", "joint", "mode"])
def test_gradients_of_two_ragged_batches_add_up_to_those_of_their_union(name: str) -> None:
    gradients = []
    for parts in ([[0, 1, 2, 3]], [[0, 3], [1, 2]]):
        model = build_model()
        objective = objective_of(model, PHASES[name]).eval()  # the memory of modes rests: it is updated batch by batch
        weights = loss_weights(PHASES[name])
        for rows in parts:
            terms = objective(make_batch(rows))
            sum(weights[term] * total for term, (total, _) in terms.items()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max())


@pytest.mark.parametrize("name", list(PHASES))
def test_every_trained_parameter_gets_a_gradient_and_no_other(name: str, model: MODE_SSM) -> None:
    phase = PHASES[name]
    for module in MODE_SSM.MODULES:
        getattr(model, module).requires_grad_(module in phase.train)
    objective = objective_of(model, phase).train()
    terms = objective(make_batch([0, 1, 2, 3]))
    weights = loss_weights(phase)
    sum(weights[term] * total / count for term, (total, count) in terms.items()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.split(".")[0] in phase.train:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name
        else:
            assert parameter.grad is None, parameter_name


def test_mode_information_is_lowest_for_sharp_and_balanced_posteriors(model: MODE_SSM) -> None:
    phase = PhaseConfig(steps=1, train=["mode_head"], loss=LossWeights(mode_information=1))
    objective = objective_of(model, phase).eval()
    batch = make_batch([0, 1])
    sharp, flat = torch.tensor([[0.999, 0.001], [0.001, 0.999]]).log(), torch.full((2, 2), 0.5).log()
    values = []
    for log_probs in (sharp, flat):
        terms: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        objective._mode(log_probs, batch, terms)
        values.append((terms["mode_information"][0] / terms["mode_information"][1]).item())
    assert values[1] == pytest.approx(math.log(2))
    assert values[0] == pytest.approx(-(0.999 * math.log(0.999) + 0.001 * math.log(0.001)), abs=1e-5)


def test_mode_block_aims_where_the_block_stands_out_from_its_session(model: MODE_SSM) -> None:
    phase = PhaseConfig(steps=1, train=["mode_head"], loss=LossWeights(mode_block=1))
    objective = objective_of(model, phase).train()
    # Blocks 0 and 1 are session s0's: block 0 is on the side of mode 1, although mode 0 is ahead in both.
    model.mode_head.block_posterior[:2] = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    log_probs = torch.tensor([[0.6, 0.4]]).log()
    terms: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    objective._mode(log_probs, make_batch([0]), terms)
    odds = ((0.6 / 0.4) / (0.9 / 0.1)) ** (BLOCK_SHARPNESS / 2)  # half the log odds of the two blocks, sharpened
    target = odds / (1 + odds)
    assert target < 0.5
    expected = -(target * math.log(0.6) + (1 - target) * math.log(0.4))
    assert terms["mode_block"][0].item() == pytest.approx(expected)


def test_a_bridge_that_predicts_the_velocity_has_no_flow_loss(model: MODE_SSM) -> None:
    objective = TranscriptionObjective(model, PHASES["flow_bridge"], BLOCK_ROWS, corruption_std=0.0).eval()
    torch.nn.init.zeros_(model.denoiser.output.weight)  # no corruption: start and target are the same, velocity 0
    assert objective(make_batch([0, 1]))["flow"][0].item() == 0.0
    torch.nn.init.ones_(model.denoiser.output.bias)
    total, count = objective(make_batch([0, 1]))["flow"]
    assert (total / count).item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [ModelKind.gru, ModelKind.transformer])
def test_ctc_of_a_baseline_is_that_of_its_trials_one_at_a_time_and_reaches_every_parameter(kind: ModelKind) -> None:
    model, phase = build_baseline(kind), PHASES["ctc_warmup"]
    objective = CtcObjective(model, phase)
    total, count = objective.eval()(make_batch([0, 1, 2, 3]))["ctc"]
    alone = 0.0
    for row in range(4):
        batch = make_batch([row])
        output = model(batch.features, batch.feature_lengths, batch.session_ids)
        log_probs = output.phoneme_logits.log_softmax(-1)[0]
        alone += F.ctc_loss(log_probs, batch.targets[0], output.lengths, batch.target_lengths, reduction="sum").item()
    assert total.item() == pytest.approx(alone, rel=1e-5)
    assert float(count) == objective.counts(make_batch([0, 1, 2, 3]))["ctc"] == 21.0
    objective.train()(make_batch([0, 1, 2, 3]))["ctc"][0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_a_phase_may_divide_ctc_and_transducer_by_trials(model: MODE_SSM) -> None:
    batch = make_batch([0, 1, 2])
    phase = PhaseConfig(
        steps=1, train=PHASES["joint"].train, loss=LossWeights(rnnt=1, ctc=1), normaliser=LossNormaliser.trials
    )
    for objective in (objective_of(model, phase), CtcObjective(build_baseline(ModelKind.gru), phase)):
        counts = {term: float(count) for term, (_, count) in objective(batch).items()}
        assert set(counts.values()) == {3.0}
        assert counts == objective.counts(batch)
    by_phonemes = objective_of(model, PHASES["joint"]).eval()(batch)["ctc"][0]
    assert objective_of(model, phase).eval()(batch)["ctc"][0].item() == pytest.approx(by_phonemes.item())
