"""Milliseconds a frame of streaming, batch 1, one thread: eager, and exported in float32 and int8."""

from copy import deepcopy

import numpy as np
import torch
from ops_row import Part, Row
from streaming import Frame, eager, exported, measure

from mode_ssm.compose import load_train_config
from mode_ssm.config import ParallelConfig
from mode_ssm.export.bundle import Source, build
from mode_ssm.export.graph import Weights
from mode_ssm.models.streaming import lay_out_for_streaming
from mode_ssm.tasks.transcription import build_model
from mode_ssm.train.distributed import init_distributed

FRAMES = 300
SMALL = ("model=mode_ssm_small", "model.encoder.bidirectional=false", "model.d_model=32", "model.encoder.headdim=16")


def stream(quick: bool) -> Part:
    init_distributed(ParallelConfig(device="cpu", threads=1))  # what any process of ours sets
    torch.manual_seed(0)
    config = load_train_config(["experiment=t15_mode_ssm", *(SMALL if quick else ())])
    model = build_model(config, num_sessions=2, num_blocks=1).eval()
    source = Source("random weights", model, config.data, ["a session"])
    bins = torch.randn(1, model.frame_stride, config.data.feature_dim)
    laid_out = deepcopy(model)
    lay_out_for_streaming(laid_out)
    forms: dict[str, Frame] = {"eager": eager(laid_out, bins)}
    reasons: dict[str, str] = {}
    for key, weights in (("onnx", Weights.fp32), ("int8", Weights.int8)):
        try:
            forms[key] = exported(build(source, "a session", weights), bins, 1)
        except ValueError as error:  # the export extra is missing
            reasons[key] = str(error)
    measure(forms, 6)  # allocations and first calls
    taken = measure(forms, 20 if quick else FRAMES)
    rows = [
        Row(f"stream_ms_{key}", float(np.median(taken[key])) if key in taken else None, "ms", reasons.get(key, ""))
        for key in ("eager", "onnx", "int8")
    ]
    return Part(f"streaming, {model.frame_stride} bins a frame, batch 1, 1 thread", rows)
