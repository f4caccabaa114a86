"""Test-time adaptation of one session: which parameters move, by which objective, for how many steps, when to refuse.

First the session's feature statistics are mapped onto those the model was trained with; then a few steps minimise the
entropy of both heads' outputs (Wang et al. 2021, Tent; Lin et al. 2022, SUTA, who leave CTC's blank frames out because
entropy alone is lowest where everything is blank). Only LayerNorms and what the model names move: the last encoder
block of MODE_SSM, the embedding of the Transformer, the session layers of the GRU. Leaving the context restores the
model to the bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mode_ssm.config import AdaptConfig
from mode_ssm.data.batch import Batch
from mode_ssm.data.statistics import FeatureStatistics
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.ops.lengths import length_mask
from mode_ssm.vocab import BLANK


@dataclass(slots=True)
class Adaptation:
    """What was done: entropies in nats a frame, over the whole session. `refused` says why nothing was kept."""

    steps: int
    parameters: int
    entropy_before: float
    entropy_after: float
    refused: str | None = None


@contextmanager
def adapted(
    model: PhonemeModel, batches: Sequence[Batch], statistics: FeatureStatistics, config: AdaptConfig
) -> Iterator[Adaptation]:
    """Within the context `model` is adapted to the unlabelled `batches` of one session; afterwards it is as before.

    `statistics` are those of the session's raw features.
    """
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    model.eval()
    try:
        if config.statistics:
            match_statistics(model, int(batches[0].session_ids[0]), statistics)
        yield minimise_entropy(model, batches, config)
    finally:
        model.load_state_dict(saved)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(requires_grad[name])
            parameter.grad = None
        model.train(training)


def adapted_parameters(model: PhonemeModel) -> list[nn.Parameter]:
    """Those of every LayerNorm and of `model.adapted_layers()`. Raises `ValueError` where there are none."""
    norms = [p for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()]
    named = [p for layer in model.adapted_layers() for p in layer.parameters()]
    if not norms + named:
        raise ValueError(
            "tta=true: a GRU without session layers has nothing that adaptation moves; evaluate it with tta=false"
        )
    return list({id(p): p for p in norms + named}.values())


@torch.no_grad()
def match_statistics(model: PhonemeModel, session: int, statistics: FeatureStatistics) -> None:
    """Shift and scale the input so that the session's features get the mean and spread they had in training:
    those of row `session` where the model knows it (0 or above), else those of all training data.

    `statistics` are of the raw features, as the model's own are: smoothing narrows both alike.
    """
    preprocessor = model.preprocessor
    if session >= 0:
        target_mean, target_std = preprocessor.session_mean[session], preprocessor.session_std[session]
    else:
        target_mean, target_std = preprocessor.feature_mean, preprocessor.feature_std
    mean, std = (torch.from_numpy(values).to(target_mean) for values in (statistics.mean, statistics.std))
    usable = std > 1e-3 * target_std  # a channel that died in this session keeps its scale
    scale = torch.where(usable, std / target_std, torch.ones_like(std))
    # (x - mean) / scale + target_mean, followed by the model's own normalisation, written as one normalisation.
    new_std = preprocessor.feature_std * scale
    preprocessor.feature_mean.copy_(mean - scale * (target_mean - preprocessor.feature_mean))
    preprocessor.feature_std.copy_(new_std)


def minimise_entropy(model: PhonemeModel, batches: Sequence[Batch], config: AdaptConfig) -> Adaptation:
    """`config.steps` Adam steps, one batch each in turn; refused and undone if the session's entropy did not fall."""
    moving = adapted_parameters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in moving:
        parameter.requires_grad_(True)
    before_values = [p.detach().clone() for p in moving]
    before = session_entropy(model, batches, config)
    optimizer = torch.optim.Adam(moving, lr=config.lr)
    for step in range(config.steps):
        optimizer.zero_grad()
        total, count = batch_entropy(model, batches[step % len(batches)], config)
        (total / count.clamp(min=1)).backward()
        optimizer.step()
    after = session_entropy(model, batches, config)
    result = Adaptation(config.steps, sum(p.numel() for p in moving), before, after)
    if not after <= before:  # also when not a number
        with torch.no_grad():
            for parameter, value in zip(moving, before_values, strict=True):
                parameter.copy_(value)
        result.refused = f"entropy rose from {before:.4f} to {after:.4f}"
    return result


@torch.no_grad()
def session_entropy(model: PhonemeModel, batches: Sequence[Batch], config: AdaptConfig) -> float:
    sums = [batch_entropy(model, batch, config) for batch in batches]
    return float(sum(total for total, _ in sums) / max(float(sum(count for _, count in sums)), 1.0))


def batch_entropy(model: PhonemeModel, batch: Batch, config: AdaptConfig) -> tuple[Tensor, Tensor]:
    """(weighted entropy summed over the frames where CTC's best class is a phoneme, number of those frames)."""
    output = model(batch.features, batch.feature_lengths, batch.session_ids)
    best = output.phoneme_logits.argmax(-1)
    frames = length_mask(output.lengths, best.shape[1]) & (best != BLANK)
    total = config.ctc_weight * entropy(output.phoneme_logits)
    if config.rnnt_weight != 0 and isinstance(model, MODE_SSM):
        predictor_out = model.predictor(greedy_contexts(best, model.predictor.context))
        total = total + config.rnnt_weight * entropy(model.joiner(output.encoder_out, predictor_out))
    return (total * frames).sum(), frames.sum()


def entropy(logits: Tensor) -> Tensor:
    """(..., V) -> (...), nats."""
    log_probs = logits.float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def greedy_contexts(best: Tensor, context: int) -> Tensor:
    """The transducer's context at every frame of CTC's greedy path: best (B, T) classes -> (B, T, context), the labels
    emitted before that frame."""
    previous = torch.cat([torch.full_like(best[:, :1], BLANK), best[:, :-1]], 1)
    emitted = (best != BLANK) & (best != previous)
    contexts = best.new_full((*best.shape, context), BLANK)
    current = best.new_full((best.shape[0], context), BLANK)
    for t in range(best.shape[1]):
        contexts[:, t] = current
        shifted = torch.cat([current[:, 1:], best[:, t : t + 1]], 1)
        current = torch.where(emitted[:, t : t + 1], shifted, current)
    return contexts
