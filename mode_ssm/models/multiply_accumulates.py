"""How many multiply-accumulates a model takes for a trial, the same on every device and kernel.

Matrix products and convolutions are counted as they run (`torch.utils.flop_counter`). What that cannot see everywhere,
scans in kernels of our own and cuDNN's GRU, is counted by hand. Element-wise work is left out, as usual. Attention is
counted as it is computed, with all pairs of frames: a stream that keeps keys and values needs half of it.

Shapes: B trials, T bins, C features, E inner channels, H heads of P, N d_state, W d_conv.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mode_ssm.models.mamba import Mamba, Mamba2
from mode_ssm.models.phoneme_model import PhonemeModel


def by_hand(module: nn.Module) -> int | None:
    """Multiply-accumulates a frame of what a module computes outside of its children; None where torch's count holds.

    Mamba-2: for each channel and state decay, input and readout, and for each channel dt x and D x. Mamba-1 has a
    decay, dt A, of each channel and state besides. A GRU: three gates of its input and of its state in every layer.
    """
    if isinstance(module, Mamba2):
        channels = module.d_inner
        return module.conv_weight.numel() + channels * (3 * module.d_state + 2)
    if isinstance(module, Mamba):
        channels = module.d_inner
        return module.conv_weight.numel() + channels * (4 * module.d_state + 2)
    if isinstance(module, nn.GRU):
        return sum(weights.numel() for name, weights in module.named_parameters() if name.startswith("weight"))
    return None


def multiply_accumulates(model: PhonemeModel, features: Tensor, feature_lengths: Tensor, session_ids: Tensor) -> int:
    """Of `model.forward`, phoneme logits included and searches not; features (B, T, C). The model is in eval mode."""
    return count_module(model, features, feature_lengths, session_ids)


@torch.no_grad()
def count_module(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of `model(*inputs)`; inputs of mixers and GRUs are (B, T, ...)."""
    frames: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if by_hand(module) is not None:

            def remember(_: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
                frames[name] = frames.get(name, 0) + arguments[0].shape[0] * arguments[0].shape[1]

            handles.append(module.register_forward_pre_hook(remember))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:  # the counter hooks gradients of views of them, which are never computed
            parameter.requires_grad_(False)
        # Fused attention has no count on a CPU; as matrix products it has.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
    flops = {name: sum(of_ops.values()) for name, of_ops in counter.get_flop_counts().items()}
    root = type(model).__name__

    def counted(name: str) -> int:
        return flops.get(f"{root}.{name}" if name else root, 0)

    total = counted("") // 2
    for name, passed in frames.items():
        module = model.get_submodule(name)
        children = sum(counted(f"{name}.{child}" if name else child) for child, _ in module.named_children())
        own = by_hand(module)
        assert own is not None
        total += passed * own - (counted(name) - children) // 2
    return total
