"""mamba-ssm and causal-conv1d, the packages of the papers' authors, as backends where they are installed and work.

Called by the functions behind their autograd functions, which have no place inside a custom op; these kept their
arguments from mamba-ssm 2.2.2 to 2.3.2 and from causal-conv1d 1.4.0 to 1.6.1. What the packages do not compute exactly
is refused by a `ValueError`.
"""

from mode_ssm.ops.peers.causal_conv import CausalConv
from mode_ssm.ops.peers.probe import why_no_peer
from mode_ssm.ops.peers.selective_scan import SelectiveScan
from mode_ssm.ops.peers.ssd import SSD

__all__ = ["SSD", "CausalConv", "SelectiveScan", "why_no_peer"]
