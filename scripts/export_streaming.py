"""Write a causal model as ONNX step models that stream without torch, and check them against it.

    uv run --extra export scripts/export_streaming.py runs/t15_mode_ssm/best --session t15.2025.04.13
    uv run --extra export scripts/export_streaming.py runs/causal/best --error-rates val

Writes step_fp32.onnx, step_int8.onnx and manifest.json; `mode_ssm.export.streaming_session.StreamingSession` runs them.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.config import Normalisation
from mode_ssm.export.bundle import Export, Source, build, write_bundle
from mode_ssm.export.graph import Weights
from mode_ssm.export.verification import (
    TOLERANCE,
    compare,
    eager_stream,
    example_features,
    median_milliseconds,
    open_export,
    phoneme_error_rates,
)
from mode_ssm.metrics import ErrorRate
from mode_ssm.models.streaming import lay_out_for_streaming
from mode_ssm.tasks.transcription_data import TranscriptionData
from mode_ssm.train.checkpoint import load_checkpoint


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.checkpoint)
    source = Source.load(checkpoint)
    if arguments.root is not None:
        source = replace(source, data=replace(source.data, root=arguments.root))
    data = None
    if arguments.error_rates is not None or source.data.normalisation is not Normalisation.released:
        data = TranscriptionData.open(source.data, checkpoint.config.seed, source.sessions)
        source = replace(source, normalise=data.normalise)
    session = arguments.session
    exports = {Weights(name): build(source, session, Weights(name)) for name in arguments.weights}
    _verify(source, session, exports, arguments.threads)
    folder = arguments.output or checkpoint.path.parent.parent / f"streaming_{session or 'unseen'}"
    write_bundle(folder, exports)
    print(f"{folder}: {source.name}, session {session or 'unseen'}, {source.model.frame_stride} bins a frame")
    if data is not None and arguments.error_rates is not None:
        _show_error_rates(arguments.error_rates, phoneme_error_rates(source, data, arguments.error_rates))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write a causal model as ONNX step models that stream without torch, and check them against it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = [weights.value for weights in Weights]
    parser.add_argument("checkpoint", help="a run directory, its best link or a step folder")
    parser.add_argument("--session", help="whose adapter; without it the mean of all, as for an unseen session")
    parser.add_argument(
        "--output", type=Path, help="folder to write, a new one; <run>/streaming_<session> if not given"
    )
    parser.add_argument("--weights", nargs="+", choices=names, default=names, help="which models to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the check")
    parser.add_argument("--error-rates", metavar="SPLIT", help="also decode this split, by the model and the exports")
    parser.add_argument("--root", help="the data, if not where the checkpoint's were")
    return parser


def _verify(source: Source, session: str | None, exports: dict[Weights, Export], threads: int) -> None:
    """Every export against eager steps. Raises `ValueError` where fp32 differs by more than rounding."""
    features = example_features(source, session)
    lay_out_for_streaming(source.model)
    expected, seconds = eager_stream(source, source.session_id(session), features)
    print(f"eager: {median_milliseconds(seconds):.2f} ms a frame")
    for weights, export in exports.items():
        found = compare(open_export(export, threads), features, expected)
        print(
            f"{weights.value}: {found.milliseconds:.2f} ms a frame, {len(export.content) / 1e6:.1f} MB; against eager "
            f"log_probs differ by {found.log_probs:.1e}, encoder_out by {found.encoder_out:.1e} of its largest value, "
            f"the best class is the same in {found.same_class:.1%} of {len(expected.log_probs)} frames"
        )
        if weights is Weights.fp32 and not found.encoder_out <= TOLERANCE:
            raise ValueError(
                f"the fp32 export differs from eager by {found.encoder_out:.1e}, more than {TOLERANCE:.0e}"
            )


def _show_error_rates(split: str, rates: dict[str, ErrorRate]) -> None:
    table = Table(title=f"phoneme error rate on {split}, greedy CTC")
    for column in ("", "PER %", "edits", "phonemes"):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in rates.items():
        table.add_row(name, f"{100 * rate.rate:.2f}", str(rate.edits), str(rate.reference_length))
    Console().print(table)


if __name__ == "__main__":
    run_main(main)
