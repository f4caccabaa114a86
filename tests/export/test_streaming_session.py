"""Running an export on a live signal: any portions of bins, smoothing as in training, trials apart, misuse refused."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_stream import FEATURE_DIM, SESSIONS, tiny_source

from mode_ssm.config import Mixer, Normalisation, Smoothing
from mode_ssm.data.batch import TrialInfo
from mode_ssm.data.normalisation import Normalise, RollingNormalisation, SessionNormalisation
from mode_ssm.data.rolling_normaliser import RollingNormaliser
from mode_ssm.data.smoothing import smooth
from mode_ssm.data.statistics import FeatureStatistics, merge
from mode_ssm.export import graph, streaming_session
from mode_ssm.export.bundle import Source, build, write_bundle
from mode_ssm.export.graph import Weights
from mode_ssm.export.streaming_session import StreamingSession
from mode_ssm.export.verification import open_export, stream

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def features(bins: int = 47, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((bins, FEATURE_DIM)).astype(np.float32)


def trial_info(number: int, session: str) -> TrialInfo:
    return TrialInfo(
        session=session, split="val", block=1, trial=number, path="", key=f"trial_{number:04d}", num_bins=47,
        num_phonemes=None, sentence=None,
    )  # fmt: skip


def offline(source: Source, x: np.ndarray) -> np.ndarray:
    smoothed = torch.from_numpy(smooth(x, source.data.smoothing, source.data.smoothing_std))
    output = source.model(smoothed[None], torch.tensor([len(x)]), torch.tensor([-1]))
    return output.phoneme_logits[0].log_softmax(-1).numpy()


@pytest.fixture
def source() -> Source:
    return tiny_source()


@pytest.fixture
def session(source: Source) -> StreamingSession:
    return open_export(build(source, None, Weights.fp32))


@pytest.mark.parametrize("bins", [1, 3, 4, 5, 8, 47])
@pytest.mark.parametrize("smoothing", Smoothing)
def test_recorded_features_go_in_and_offline_log_probs_come_out(smoothing: Smoothing, bins: int) -> None:
    source = tiny_source(smoothing=smoothing)
    found = stream(open_export(build(source, None, Weights.fp32)), features(bins))
    expected = offline(source, features(bins))
    assert found.log_probs.shape == expected.shape
    assert found.encoder_out.shape == (len(expected), 24)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("portion", [1, 3, 4, 7, 46])
@pytest.mark.parametrize("encoder", [{"mixer": Mixer.mamba}, {"mixer": Mixer.mamba2}, {"d_conv": 1}])
def test_portions_do_not_matter(encoder: dict, portion: int) -> None:
    session = open_export(build(tiny_source(**encoder), None, Weights.int8))
    whole = stream(session, features())
    frames = [session.push(features()[begin : begin + portion]) for begin in range(0, 47, portion)]
    frames.append(session.finish())
    np.testing.assert_array_equal(np.concatenate([f.log_probs for f in frames]), whole.log_probs)
    np.testing.assert_array_equal(np.concatenate([f.encoder_out for f in frames]), whole.encoder_out)


def test_a_normaliser_takes_recorded_bins_and_goes_on_from_trial_to_trial(source: Source) -> None:
    mean, std = np.full(FEATURE_DIM, 3.0), np.full(FEATURE_DIM, 2.0)
    export = build(source, None, Weights.fp32)
    live = StreamingSession(export.content, export.manifest, normaliser=RollingNormaliser(mean, std, 30))
    by_hand, plain = RollingNormaliser(mean, std, 30), open_export(export)
    for seed in (5, 6):
        frames = [live.push(portion) for portion in np.array_split(features(seed=seed) * 2 + 3, 5)] + [live.finish()]
        expected = stream(plain, by_hand.step(features(seed=seed) * 2 + 3)).log_probs
        np.testing.assert_allclose(np.concatenate([f.log_probs for f in frames]), expected, atol=1e-5)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("normalisation", [Normalisation.session, Normalisation.rolling])
def test_a_folder_normalises_recorded_bins_as_the_checkpoints_data_were(
    normalisation: Normalisation, trained: bool, tmp_path: Path
) -> None:
    """Over two trials of a block, in portions; a session that was not trained on gets the statistics of all."""
    by_session = {
        name: FeatureStatistics.of(features(400, seed) * (2 + seed) + 5 * seed) for seed, name in enumerate(SESSIONS)
    }
    infos = [trial_info(number, SESSIONS[1] if trained else "t15.2024.01.01") for number in range(2)]
    recorded = {info.name: features(seed=7 + info.trial) * 3 + 4 for info in infos}
    normalise: Normalise = SessionNormalisation(by_session, merge(by_session.values()))
    if normalisation is Normalisation.rolling:
        overall = merge(by_session.values())
        normalise = RollingNormalisation(infos, lambda info: recorded[info.name], overall, window_bins=30)
    source = tiny_source()
    source = replace(source, data=replace(source.data, normalisation=normalisation), normalise=normalise)
    session = SESSIONS[1] if trained else None
    write_bundle(tmp_path / "exported", {Weights.fp32: build(source, session, Weights.fp32)})
    live = StreamingSession.open(tmp_path / "exported", recorded=True)
    plain = StreamingSession.open(tmp_path / "exported")
    for info in infos:
        frames = [live.push(portion) for portion in np.array_split(recorded[info.name], 5)] + [live.finish()]
        expected = stream(plain, normalise(info, recorded[info.name])).log_probs
        np.testing.assert_allclose(np.concatenate([f.log_probs for f in frames]), expected, atol=1e-4)


def test_a_folder_without_the_statistics_that_recorded_bins_take_says_so(source: Source, tmp_path: Path) -> None:
    older = replace(source, data=replace(source.data, normalisation=Normalisation.session))
    write_bundle(tmp_path / "older", {Weights.fp32: build(older, None, Weights.fp32)})
    with pytest.raises(ValueError, match=r"data\.normalisation=session, and its manifest lacks their statistics"):
        StreamingSession.open(tmp_path / "older", recorded=True)
    write_bundle(tmp_path / "released", {Weights.fp32: build(source, None, Weights.fp32)})
    assert StreamingSession.open(tmp_path / "released", recorded=True).normaliser is None


def test_a_frame_comes_as_soon_as_its_bins_and_the_look_ahead_of_smoothing_are_there(session: StreamingSession) -> None:
    stride, ahead = session.stride, session.manifest.lookahead_bins
    assert (stride, ahead) == (4, 4)
    counts = [len(session.push(features(1)).log_probs) for _ in range(16)]
    assert [bins for bins, count in enumerate(counts, start=1) if count] == [8, 12, 16]
    assert len(session.finish().log_probs) == 1


def test_no_bins_no_frames(session: StreamingSession) -> None:
    assert session.push(features(0)).log_probs.shape == (0, 41)
    assert session.finish().encoder_out.shape == (0, 24)


@pytest.mark.parametrize("end", [StreamingSession.finish, StreamingSession.reset])
def test_a_trial_leaves_nothing_to_the_next(
    session: StreamingSession, end: Callable[[StreamingSession], object]
) -> None:
    first = stream(session, features())
    session.push(features(seed=6))
    end(session)
    np.testing.assert_array_equal(stream(session, features()).log_probs, first.log_probs)


def test_what_came_out_does_not_change_later(session: StreamingSession) -> None:
    frames = session.push(features())
    before = frames.log_probs.copy()
    session.push(features(seed=6))
    np.testing.assert_array_equal(frames.log_probs, before)


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (np.zeros((4, FEATURE_DIM + 1)), r"bins of shape \(4, 7\): the model reads \(n, 6\) features"),
        (np.zeros(FEATURE_DIM), r"bins of shape \(6,\)"),
        (np.full((1, FEATURE_DIM), np.nan), "not finite"),
    ],
)
def test_bins_that_do_not_fit_are_refused_and_spoil_nothing(
    session: StreamingSession, bins: np.ndarray, message: str
) -> None:
    expected = stream(session, features())
    begin = session.push(features()[:10])
    with pytest.raises(ValueError, match=message):
        session.push(bins)
    rest = stream(session, features()[10:])
    np.testing.assert_array_equal(np.concatenate([begin.log_probs, rest.log_probs]), expected.log_probs)


def test_a_folder_runs_without_torch(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    write_bundle(folder, {weights: build(source, None, weights) for weights in Weights})
    np.save(tmp_path / "features.npy", features())
    code = (
        "import sys, numpy as np\n"
        "from mode_ssm.export.streaming_session import StreamingSession\n"
        f"session = StreamingSession.open({str(folder)!r}, 'int8')\n"
        f"frames = session.push(np.load({str(tmp_path / 'features.npy')!r}))\n"
        "assert 'torch' not in sys.modules\n"
        "print(frames.log_probs.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = StreamingSession.open(folder, "int8").push(features()).log_probs.sum()
    assert float(done.stdout) == pytest.approx(float(expected), rel=1e-6)


def test_a_file_that_onnxruntime_cannot_run_names_the_version_that_it_was_written_for(source: Source) -> None:
    export = build(source, None, Weights.fp32)
    written_elsewhere = replace(export.manifest, versions={"onnxruntime": "9.8.7"})
    content = export.content.replace(b"LinearAttention", b"LinearAttentiom")
    with pytest.raises(ValueError, match=r"onnxruntime \d.* cannot run a model written for 9\.8\.7"):
        StreamingSession(content, written_elsewhere)


@pytest.mark.parametrize(
    ("package", "module"), [("onnx", graph), ("onnxruntime", streaming_session)], ids=["onnx", "onnxruntime"]
)
def test_a_missing_extra_is_named(
    package: str, module: object, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.import_module  # type: ignore[attr-defined]

    def without(name: str) -> object:
        if name == package:
            raise ModuleNotFoundError(name=name)
        return real(name)

    monkeypatch.setattr(module, "import_module", without)
    with pytest.raises(ValueError, match="uv sync --extra export"):
        open_export(build(source, None, Weights.fp32))
