"""One frame of a causal MODE_SSM as an ONNX graph: `MODE_SSM.step` for one stream from one session.

What is linear is multiplied out beforehand, in float64: session adapter, gates, projection and the stem's convolution
become one matrix, time embeddings biases of the flow, and its step 1 / n_steps a part of its output layer.

Shapes: C features, P projected, D d_model, E = expand * D, H heads, N d_state, W d_conv; batch and time are 1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mode_ssm.config import SessionAdapter
from mode_ssm.export.graph import GraphBuilder, Weights
from mode_ssm.models.denoise_flow import DenoiseFlow
from mode_ssm.models.mamba import Mamba, Mamba2
from mode_ssm.models.mode_head import MIN_VARIANCE, ModeHead
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.preprocessor import Preprocessor
from mode_ssm.models.rnnt_ctc_heads import CTCHead
from mode_ssm.models.ssm_encoder import SSMEncoder

AFTER = "next."  # in front of a state's name: its value after the frame


@dataclass(frozen=True, slots=True)
class StepModel:
    """An ONNX ModelProto and the shapes of its values by name. A state is an input, and after `AFTER` an output."""

    proto: Any
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    states: dict[str, tuple[int, ...]]


@torch.no_grad()
def build_step_model(model: MODE_SSM, session_id: int, weights: Weights) -> StepModel:
    """The graph of one frame of a stream from a session, -1 for an unseen one. All states start at zero.

    Inputs are `bins` (1, stride, C) and `bin_mask` (1, stride), 1 for bins that are there and 0 for those that the last
    frame of a trial lacks; outputs `log_probs` (1, V) and `encoder_out` (1, D).
    Raises `ValueError` for a model that reads the future, and where the `export` extra is missing.
    """
    if not model.causal:
        raise ValueError("model.encoder.bidirectional=true reads the future: streaming needs bidirectional=false")
    graph = _StepGraph(weights)
    frame = graph.stem(model.preprocessor, session_id)
    encoded = graph.encoder(frame, model.encoder)
    conditioned = graph.mode_head(frame, encoded, model.mode_head)
    graph.ctc_head(graph.flow(conditioned, model.denoiser), model.ctc_head)
    inputs = {name: shape for name, shape in graph.inputs.items() if name not in graph.states}
    outputs = {name: shape for name, shape in graph.outputs.items() if not name.startswith(AFTER)}
    return StepModel(graph.model("mode_ssm_step"), inputs, outputs, graph.states)


class _StepGraph(GraphBuilder):
    """The parts of MODE_SSM, each given its module and the names of its inputs, (1, 1, D) if nothing else is said."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.states: dict[str, tuple[int, ...]] = {}

    def state(self, name: str, *shape: int) -> tuple[str, str]:
        """Names of a state before and after the frame."""
        self.states[name] = shape
        return self.input(name, *shape), self.output(AFTER + name, *shape)

    def stem(self, preprocessor: Preprocessor, session_id: int) -> str:
        """The convolution by overlap and add: bins are multiplied once, by the taps with which their frame sees them
        and those with which later frames will. The state holds what later frames have to add."""
        bins, stride = preprocessor.feature_mean.shape[0], preprocessor.stride
        linear, offset = session_map(preprocessor, session_id)
        taps = _overlapping_taps(_array(preprocessor.conv.weight), stride)  # (F, D, stride, P), F frames see a bin
        frames, d_model = taps.shape[:2]
        weight = (taps @ linear.T).reshape(frames * d_model, -1)
        of_offset = (taps @ offset).reshape(frames * d_model, stride)

        x, mask = self.input("bins", 1, stride, bins), self.input("bin_mask", 1, stride)
        present, token = mask, preprocessor.mask_token
        if token is not None:
            present = self.op("Sign", self.op("ReduceMax", self.op("Abs", x), self.constant(np.array([2])), keepdims=0))
        # A bin that is not there is zero behind the adapter, not in front of it.
        scale = self.op("Mul", self.reshape(present, 1, stride, 1), self.constant(1 / _array(preprocessor.feature_std)))
        x = self.op("Mul", self.op("Sub", x, self.constant(_array(preprocessor.feature_mean))), scale)
        x = self.op("Add", self.linear(self.reshape(x, 1, -1), weight), self.linear(present, of_offset, exact=True))
        if token is not None:
            of_token = (taps @ _array(token)).reshape(frames * d_model, stride)
            x = self.op("Add", x, self.linear(self.op("Sub", mask, present), of_token, exact=True))
        if frames > 1:
            later = (frames - 1) * d_model
            before, after = self.state("stem", 1, later)
            carried = self.op("Concat", before, self.constant(np.zeros((1, d_model))), axis=-1)
            x, _ = self.split(self.op("Add", x, carried), d_model, later, to=[None, after])
        assert preprocessor.conv.bias is not None
        x = self.op("Gelu", self.op("Add", x, self.constant(_array(preprocessor.conv.bias))))
        return self.layer_norm(self.reshape(x, 1, 1, d_model), preprocessor.norm)

    def encoder(self, x: str, encoder: SSMEncoder) -> str:
        blocks = encoder.stepping_blocks()
        normed = self.layer_norm(x, blocks[0].norm)
        for number, block in enumerate(blocks):
            name = f"blocks.{number}"
            if isinstance(block.mixer, Mamba2):
                mixed = self.mamba2(normed, block.mixer, name)
            else:
                mixed = self.mamba(normed, block.mixer, name)
            norm = blocks[number + 1].norm if number + 1 < len(blocks) else encoder.norm
            parameters = self.constant(_array(norm.weight)), self.constant(_array(norm.bias))
            normed, _, _, x = self.ops(
                "SkipLayerNormalization", x, mixed, *parameters, to=[None, "", "", None], epsilon=norm.eps
            )
        return normed

    def mamba2(self, x: str, mixer: Mamba2, name: str) -> str:
        width, heads, headdim, n = mixer.d_inner, mixer.n_heads, mixer.headdim, mixer.d_state
        z, conv_in, dt = self.split(self.dense(x, mixer.in_proj), width, width + 2 * n, heads)
        u, B, C = self.split(self.causal_conv(conv_in, mixer, name), width, n, n)
        dt = self.op("Softplus", self.op("Add", dt, self.constant(_array(mixer.dt_bias))))
        decay = self.op("Mul", dt, self.constant(-np.exp(_array(mixer.A_log))))  # the operator takes its exponential
        key = self.reshape(self.op("Mul", self.reshape(dt, 1, heads, 1), B), 1, 1, heads * n)
        before, after = self.state(f"{name}.ssm", 1, heads, n, headdim)
        # S = exp(decay) S + key u^T, y = C^T S for every head: attention whose query and key are Mamba's C and dt B.
        y, _ = self.ops(
            "LinearAttention", C, key, u, before, decay, to=[None, after],
            q_num_heads=1, kv_num_heads=heads, update_rule="gated", scale=1.0,
        )  # fmt: skip
        y = self.op("Add", y, self.op("Mul", u, self.constant(np.repeat(_array(mixer.D), headdim))))
        y = self.op("Mul", y, self.silu(z))
        y = self.op("RMSNormalization", y, self.constant(_array(mixer.norm.weight)), epsilon=mixer.norm.eps)
        return self.dense(y, mixer.out_proj)

    def mamba(self, x: str, mixer: Mamba, name: str) -> str:
        width, n = mixer.d_inner, mixer.d_state
        u, z = self.split(self.dense(x, mixer.in_proj), width, width)
        u = self.causal_conv(u, mixer, name)
        dt, B, C = self.split(self.dense(u, mixer.x_proj), mixer.dt_rank, n, n)
        dt = self.op("Softplus", self.dense(self.reshape(dt, 1, -1), mixer.dt_proj))
        before, after = self.state(f"{name}.ssm", 1, n, width)  # E last: products then run along rows of E, not N
        decay = self.op("Exp", self.op("Mul", dt, self.constant(-np.exp(_array(mixer.A_log)).T)))
        added = self.op("Mul", self.op("Mul", dt, u), self.reshape(B, 1, n, 1))
        self.op("Add", self.op("Mul", before, decay), added, to=after)
        y = self.op("Add", self.op("MatMul", C, after), self.op("Mul", u, self.constant(_array(mixer.D))))
        return self.dense(self.op("Mul", y, self.silu(z)), mixer.out_proj)

    def causal_conv(self, x: str, mixer: Mamba | Mamba2, name: str) -> str:
        """With SiLU behind it."""
        weight = _array(mixer.conv_weight)
        before, after = self.state(f"{name}.conv", 1, weight.shape[1] - 1, weight.shape[0])
        parameters = self.constant(weight[:, None]), self.constant(_array(mixer.conv_bias))
        y, _ = self.ops(
            "CausalConvWithState", x, *parameters, before, to=[None, after], channels_last=1, activation="silu"
        )
        return y

    def mode_head(self, stem: str, encoded: str, head: ModeHead) -> str:
        d_model = head.gain.shape[1]
        sums, new_sums = self.state("mode.sums", 1, 1, 3 * d_model)
        count, new_count = self.state("mode.count", 1, 1, 1)
        frame = self.op("Concat", stem, self.op("Mul", stem, stem), encoded, axis=-1)
        self.op("Add", sums, frame, to=new_sums)
        self.op("Add", count, self.constant(np.ones(1)), to=new_count)
        mean, square, of_encoder = self.split(self.op("Div", new_sums, new_count), d_model, d_model, d_model)
        variance = self.op("Sub", square, self.op("Mul", mean, mean))
        spread = self.op("Sqrt", self.op("Max", variance, self.constant(np.array(MIN_VARIANCE))))
        norm, hidden, _, output = head.classifier
        x = self.layer_norm(self.op("Concat", mean, spread, of_encoder, axis=-1), norm)
        x = self.op("Gelu", self.dense(x, hidden, exact=True))
        probs = self.op("Softmax", self.dense(x, output, exact=True), axis=-1)
        # The probabilities sum to one, so that 1 + p . gain = p . (1 + gain).
        modulation = np.concatenate([1 + _array(head.gain), _array(head.offset)], 1).T
        gain, offset = self.split(self.linear(probs, modulation, exact=True), d_model, d_model)
        return self.op("Add", self.op("Mul", encoded, gain), offset)

    def flow(self, x: str, flow: DenoiseFlow) -> str:
        """-> (1, D)."""
        x = self.reshape(x, 1, -1)
        first, last = _array(flow.input.weight), _array(flow.output.weight) / flow.n_steps
        for time in _array(flow.time_embeddings()):
            h = self.silu(self.linear(self.layer_norm(x, flow.norm), first, _array(flow.input.bias) + time))
            h = self.silu(self.dense(h, flow.hidden))
            x = self.op("Add", x, self.linear(h, last, _array(flow.output.bias) / flow.n_steps))
        return x

    def ctc_head(self, x: str, head: CTCHead) -> None:
        """x (1, D) is also the encoder's output."""
        classes, d_model = head.output.weight.shape
        encoder_out = self.op("Identity", x, to=self.output("encoder_out", 1, d_model))
        logits = self.dense(encoder_out, head.output, exact=True)
        self.op("LogSoftmax", logits, to=self.output("log_probs", 1, classes), axis=-1)

    def dense(self, x: str, layer: nn.Module, *, exact: bool = False) -> str:
        assert isinstance(layer, nn.Linear)
        bias = _array(layer.bias) if layer.bias is not None else None
        return self.linear(x, _array(layer.weight), bias, exact=exact)

    def layer_norm(self, x: str, norm: nn.Module) -> str:
        assert isinstance(norm, nn.LayerNorm)
        parameters = self.constant(_array(norm.weight)), self.constant(_array(norm.bias))
        return self.op("LayerNormalization", x, *parameters, axis=-1, epsilon=norm.eps)

    def silu(self, x: str) -> str:
        return self.op("QuickGelu", x, alpha=1.0)


def session_map(preprocessor: Preprocessor, session_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(linear (C, P), offset (P,)): what lies between normalised bins x and the convolution, as x @ linear + offset."""
    session = preprocessor.initial_state(torch.tensor([session_id], device=preprocessor.feature_mean.device)).session
    own = {name: _array(values[0]) for name, values in session.items()}
    linear, offset = np.eye(len(preprocessor.feature_mean)), np.zeros(len(preprocessor.feature_mean))
    if preprocessor.adapter is SessionAdapter.diagonal:
        linear, offset = np.diag(1 + own["weight"]), own["offset"]
    elif preprocessor.adapter is SessionAdapter.affine:
        linear, offset = linear + own["weight"], own["offset"]
    if preprocessor.channel_gate is not None:
        gate = _array(2 * torch.sigmoid(preprocessor.channel_gate))
        linear, offset = linear * gate, offset * gate
    if preprocessor.adapter is SessionAdapter.projection:
        linear, offset = linear @ own["weight"], offset @ own["weight"] + own["offset"]
    elif preprocessor.projection is not None:
        weight = _array(preprocessor.projection.weight).T
        linear, offset = linear @ weight, offset @ weight + _array(preprocessor.projection.bias)
    return linear, offset


def _overlapping_taps(taps: np.ndarray, stride: int) -> np.ndarray:
    """taps (D, P, kernel) -> (F, D, stride, P): with which the frame f strides later sees the bins of this one."""
    d_model, projected, kernel = taps.shape
    frames = -(-kernel // stride)
    padded = np.pad(taps, ((0, 0), (0, 0), (frames * stride - kernel, 0)))  # oldest first
    return padded.reshape(d_model, projected, frames, stride)[:, :, ::-1].transpose(2, 0, 3, 1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
