"""What streaming a causal MODE_SSM frame by frame takes beside its modules: the carried state, a layout of weights.

Shapes: B trials, D d_model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mode_ssm.models.mamba import MixerState
from mode_ssm.models.mode_head import ModeState
from mode_ssm.models.preprocessor import StemState


@dataclass(frozen=True, slots=True)
class StreamState:
    """What the model carries from frame to frame; its size does not grow.

    What depends on weights and session alone is computed when a stream begins: `flow_times` (n_steps, hidden), the
    stem's session and the encoder's A. `ended` after a frame of fewer bins than the stride, which nothing can follow.
    """

    stem: StemState
    encoder: list[MixerState]
    mode: ModeState
    flow_times: Tensor
    ended: bool = False

    def ends_with(self, bins: int, stride: int) -> bool:
        """Whether a frame of so many bins ends the stream. Raises `ValueError` where it cannot follow."""
        if self.ended:
            raise ValueError(f"a frame of fewer than {stride} bins ended this stream; begin the next by initial_state")
        if not 1 <= bins <= stride:
            raise ValueError(f"a frame takes {stride} bins, the last of a trial 1 to {stride}; this one has {bins}")
        return bins < stride


@torch.no_grad()
def lay_out_for_streaming(model: nn.Module) -> None:
    """Store the weights of linear layers column by column, in place; shapes, values and names stay.

    On a CPU one frame is a chain of matrix-vector products, bound by how fast weights are read, and the many short rows
    of an input projection are read a third slower than its few long columns.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.t().contiguous().t()
