"""Log-mel features of sound in bins of 20 ms.

A bin of 20 ms is coarse for a plosive, so each bin stacks two frames 10 ms apart: with 80 features, 40 mel bands of
the bin's first half, then 40 of its second. Windows of 25 ms overlap, so nothing falls between frames or bins.

Shapes: N samples, T bins, C features, K frequencies.
"""

import functools

import numpy as np

BIN_SECONDS = 0.020
FRAMES_PER_BIN = 2
WINDOW_SECONDS = 0.025
POWER_FLOOR = 1e-8  # full scale is 1; some 20 dB over the rounding noise of 16-bit samples


def log_mel(samples: np.ndarray, sample_rate: int, feature_dim: int) -> np.ndarray:
    """Natural-log mel power: samples (N,) in [-1, 1] -> (T, feature_dim) float32 with T = N // (samples in 20 ms).

    Frames are centred on the quarters of their bin; the signal is mirrored at both ends. Raises `ValueError` for a
    width that does not stack, a sample rate without a whole number of samples in 10 ms, or less sound than one bin.
    """
    if feature_dim % FRAMES_PER_BIN:
        raise ValueError(
            f"feature_dim={feature_dim}: a bin stacks {FRAMES_PER_BIN} frames, so the width is a multiple of it"
        )
    hop = sample_rate * BIN_SECONDS / FRAMES_PER_BIN
    if hop != int(hop):
        raise ValueError(
            f"sample rate {sample_rate} Hz has no whole number of samples in 10 ms; resample, to 16000 Hz for example"
        )
    hop, window = int(hop), round(sample_rate * WINDOW_SECONDS)
    bins = len(samples) // (hop * FRAMES_PER_BIN)
    if bins == 0:
        raise ValueError(f"{len(samples)} samples at {sample_rate} Hz are less than one bin of 20 ms")
    margin = (window - hop + 1) // 2
    padded = np.pad(samples, (margin, margin), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: bins * FRAMES_PER_BIN]
    taper, fft_size, filters = _analysis(sample_rate, window, feature_dim // FRAMES_PER_BIN)
    power = np.abs(np.fft.rfft(frames * taper, fft_size)) ** 2  # (frames, K)
    return np.log(power @ filters + POWER_FLOOR).astype(np.float32).reshape(bins, feature_dim)


@functools.cache
def _analysis(sample_rate: int, window: int, bands: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Hann taper of unit energy, FFT size, and triangular mel filters (K, bands) of unit area.

    Mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987), from 0 Hz to half the sample rate.
    """
    taper = np.hanning(window + 2)[1:-1]
    taper /= np.sqrt(np.sum(taper**2))
    fft_size = 2 ** int(np.ceil(np.log2(window)) + 1)  # padded twofold: low filters are narrower than 1 / window
    frequencies = np.arange(fft_size // 2 + 1) * sample_rate / fft_size
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    filters = np.clip(np.minimum(rising, falling), 0, None)
    area = filters.sum(axis=0)
    if not area.all():
        raise ValueError(f"{bands} mel bands are too many for {sample_rate} Hz: some hold no frequency; use fewer")
    return taper, fft_size, filters / area
