"""An exported step model on a live signal: bins in, log-probabilities out. Needs numpy and onnxruntime, no torch.

Shapes: C features, D d_model, V classes, K frames.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mode_ssm.export.live_normaliser import LiveNormaliser, live_normaliser
from mode_ssm.export.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Frames:
    """log_probs (K, V), natural logarithms of the manifest's classes; encoder_out (K, D)."""

    log_probs: np.ndarray
    encoder_out: np.ndarray


class StreamingSession:
    """`push` bins as they come, however many, and `finish` a trial; both return the frames that became complete.

        session = StreamingSession.open("exported/", "int8", recorded=True)
        while recording:
            frames = session.push(amplifier.read())
        frames = session.finish()

    Features go in that are normalised as the manifest says; with `recorded`, or a `normaliser`, as they are recorded.
    Normalisation goes on from trial to trial: `normaliser.reset()` begins a block. Smoothing is done here, as the
    checkpoint's data were smoothed.
    Not for several threads.
    """

    def __init__(
        self, model: str | bytes, manifest: Manifest, threads: int = 1, normaliser: LiveNormaliser | None = None
    ) -> None:
        """model: path or content of an ONNX file. Raises `ValueError` where onnxruntime is missing or cannot run it."""
        try:
            ort = import_module("onnxruntime")
        except ModuleNotFoundError:
            raise ValueError("running an exported model needs onnxruntime: uv sync --extra export") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no base of their own
            written_for = manifest.versions.get("onnxruntime", "another version")
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"onnxruntime {ort.__version__} cannot run a model written for {written_for}: {reason}"
            ) from None
        self.manifest, self.normaliser = manifest, normaliser
        _, self.stride, self.features = manifest.inputs["bins"].shape
        self._taps = np.array(manifest.smoothing, np.float32)
        fixed = {**manifest.inputs, **manifest.outputs}
        self._values = {name: np.zeros(spec.shape, spec.dtype) for name, spec in fixed.items()}
        # Two sets of states, each written from the other, so that nothing is copied between frames.
        self._states = [{name: np.zeros(s.shape, s.dtype) for name, s in manifest.states.items()} for _ in range(2)]
        self._bindings = [self._bind(ort, self._states[i], self._states[1 - i]) for i in range(2)]
        self.reset()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        weights: str = "fp32",
        threads: int = 1,
        *,
        recorded: bool = False,
    ) -> "StreamingSession":
        """The model of an exported folder whose weights are stored so. recorded: for bins as they are recorded, which
        are normalised as the checkpoint's data were; raises `ValueError` where the folder lacks what that takes."""
        manifest = Manifest.read(Path(folder))
        normaliser = live_normaliser(manifest) if recorded else None
        return cls(str(manifest.file(Path(folder), weights)), manifest, threads, normaliser)

    def reset(self) -> None:
        """Forget the trial so far."""
        for state in self._states[0].values():
            state[:] = 0
        self._turn = 0
        past = len(self._taps) - 1 - self.manifest.lookahead_bins
        self._recent = np.zeros((past, self.features), np.float32)  # recorded bins that smoothing still needs
        self._waiting = np.zeros((0, self.features), np.float32)  # smoothed bins of a frame that is not complete

    def push(self, bins: np.ndarray) -> Frames:
        """bins (n, C), any n. Raises `ValueError` for another width, and for values that would spoil the states."""
        if bins.ndim != 2 or bins.shape[1] != self.features:
            raise ValueError(f"bins of shape {bins.shape}: the model reads (n, {self.features}) features")
        if not np.isfinite(bins).all():
            raise ValueError("bins hold values that are not finite")
        return self._run(self._complete(bins if self.normaliser is None else self.normaliser.step(bins)))

    def finish(self) -> Frames:
        """The trial is over: what smoothing and an incomplete frame held back. The next `push` begins a new trial."""
        frames = self._complete(np.zeros((self.manifest.lookahead_bins, self.features), np.float32))
        if len(self._waiting):
            frames.append(self._waiting)
        last = self._run(frames)
        self.reset()
        return last

    def _complete(self, bins: np.ndarray) -> list[np.ndarray]:
        """Frames (stride, C) that recorded bins complete."""
        waiting = np.concatenate([self._waiting, self._smooth(bins)])
        count = len(waiting) // self.stride
        self._waiting = waiting[count * self.stride :]
        return [waiting[i * self.stride : (i + 1) * self.stride] for i in range(count)]

    def _smooth(self, bins: np.ndarray) -> np.ndarray:
        recent = np.concatenate([self._recent, bins.astype(np.float32, copy=False)])
        count = max(0, len(recent) - len(self._taps) + 1)
        self._recent = recent[count:]
        smoothed = np.zeros((count, self.features), np.float32)
        for offset, tap in enumerate(self._taps):
            smoothed += tap * recent[offset : offset + count]
        return smoothed

    def _run(self, frames: list[np.ndarray]) -> Frames:
        values, outputs = self._values, ("log_probs", "encoder_out")
        results = {name: [values[name][:0]] for name in outputs}
        for frame in frames:
            for name, value in (("bins", frame), ("bin_mask", 1.0)):
                values[name][0, : len(frame)] = value
                values[name][0, len(frame) :] = 0
            self._session.run_with_iobinding(self._bindings[self._turn])
            self._turn = 1 - self._turn
            for name in outputs:
                results[name].append(values[name].copy())
        return Frames(*(np.concatenate(results[name]) for name in outputs))

    def _bind(self, ort: Any, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> Any:
        binding, value = self._session.io_binding(), ort.OrtValue.ortvalue_from_numpy  # on a CPU it shares the memory
        for name in self.manifest.inputs:
            binding.bind_ortvalue_input(name, value(self._values[name]))
        for name in self.manifest.outputs:
            binding.bind_ortvalue_output(name, value(self._values[name]))
        for name in self.manifest.states:
            binding.bind_ortvalue_input(name, value(before[name]))
            binding.bind_ortvalue_output(self.manifest.after + name, value(after[name]))
        return binding
