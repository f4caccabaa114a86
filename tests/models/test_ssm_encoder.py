"""Every encoder variant: padding invariance, causality, scan == step, gradient checkpointing."""

import pytest
import torch

from mode_ssm.config import EncoderConfig, Mixer
from mode_ssm.models.ssm_encoder import SSMEncoder

D = 16
VARIANTS = [(mixer, bidirectional) for mixer in Mixer for bidirectional in (False, True)]


def build(mixer: Mixer, bidirectional: bool, d_conv: int = 4, **changes: object) -> SSMEncoder:
    torch.manual_seed(1)
    config = EncoderConfig(
        mixer=mixer, bidirectional=bidirectional, n_layers=2, d_state=8, headdim=8, d_conv=d_conv, dropout=0.0
    )
    for name, value in changes.items():
        setattr(config, name, value)
    return SSMEncoder(D, config).double().eval()


@pytest.mark.parametrize(("mixer", "bidirectional"), VARIANTS)
def test_output_does_not_depend_on_batch_companions_or_padding(mixer: Mixer, bidirectional: bool) -> None:
    encoder = build(mixer, bidirectional)
    x = torch.randn(3, 20, D, dtype=torch.float64)
    lengths = torch.tensor([20, 7, 13])
    batched, _ = encoder(x, lengths)
    for row, length in enumerate(lengths):
        alone, _ = encoder(x[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(batched[row, :length], alone[0], atol=1e-10, rtol=1e-10)
        assert batched[row, length:].abs().max() == 0 if length < 20 else True
    x[1, 7:] = 1e3  # what stands in the padding does not matter either
    torch.testing.assert_close(encoder(x, lengths)[0], batched, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("mixer", "bidirectional"), VARIANTS)
def test_only_a_causal_encoder_ignores_the_future(mixer: Mixer, bidirectional: bool) -> None:
    encoder = build(mixer, bidirectional)
    x = torch.randn(1, 15, D, dtype=torch.float64)
    changed = x.clone()
    changed[:, 9, 0] += 1.0  # one channel: LayerNorm hides a shift of all
    before, after = encoder(x, torch.tensor([15]))[0], encoder(changed, torch.tensor([15]))[0]
    early = (before[:, :9] - after[:, :9]).abs().max()
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 1e-3
    assert encoder.causal is not bidirectional
    assert early == 0 if encoder.causal else early > 1e-6


@pytest.mark.parametrize("d_conv", [1, 2, 4])
@pytest.mark.parametrize("mixer", list(Mixer))
def test_repeated_steps_equal_the_scan(mixer: Mixer, d_conv: int) -> None:
    encoder = build(mixer, False, d_conv)
    x = torch.randn(2, 12, D, dtype=torch.float64)
    whole, _ = encoder(x, torch.tensor([12, 12]))
    states = encoder.initial_state(2)
    for t in range(12):
        y, states = encoder.step(x[:, t], states)
        torch.testing.assert_close(y, whole[:, t], atol=1e-10, rtol=1e-10)


def test_a_bidirectional_encoder_refuses_to_step() -> None:
    with pytest.raises(ValueError, match="bidirectional=false"):
        build(Mixer.mamba2, True).initial_state(1)


@pytest.mark.parametrize("mixer", list(Mixer))
def test_gradient_checkpointing_changes_no_gradient(mixer: Mixer) -> None:
    x, lengths = torch.randn(2, 10, D, dtype=torch.float64), torch.tensor([10, 6])
    gradients = []
    for checkpointing in (False, True):
        encoder = build(mixer, True, gradient_checkpointing=checkpointing).train()
        encoder(x, lengths)[0].square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-12, rtol=1e-12)


def test_drop_path_grows_with_depth_and_rests_in_evaluation() -> None:
    encoder = build(Mixer.mamba2, False, n_layers=3, drop_path=0.2)
    assert [block.drop_path.p for block in encoder.blocks] == pytest.approx([0.0, 0.1, 0.2])
    x, lengths = torch.randn(1, 5, D, dtype=torch.float64), torch.tensor([5])
    torch.testing.assert_close(encoder(x, lengths)[0], encoder(x, lengths)[0], atol=0, rtol=0)


def test_headdim_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.encoder\.headdim=24"):
        SSMEncoder(D, EncoderConfig(mixer=Mixer.mamba2, headdim=24))
