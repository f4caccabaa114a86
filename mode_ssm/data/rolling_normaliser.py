"""Causal normalisation of a block while it is recorded: what is known of the past, and nothing else. Needs no torch.

Shapes: n bins, C features, N bins of the window.
"""

import numpy as np

LEAST_STD = 0.01  # of the training split's: a channel that dies is not blown up


class RollingNormaliser:
    """Features minus the mean of the last N bins, divided by their standard deviation; the present bin is among them.

    A window that the block has not filled yet counts as filled up by bins with the mean and spread of training (C,),
    so that the first bins are normalised by those and the rest moves away from them. `reset` begins the next block.
    Sums are kept in float64 and each bin enters and leaves them with the same value.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, window_bins: int) -> None:
        """mean and std (C,) of the training split. Raises `ValueError` for a window of no bins."""
        if window_bins < 1:
            raise ValueError(f"a rolling window of {window_bins} bins; it needs at least 1")
        self.mean = mean.astype(np.float64)
        self.variance = np.where(std > 0, std, 1.0).astype(np.float64) ** 2
        self.window_bins = window_bins
        self._recent = np.zeros((window_bins, len(mean)), np.float32)  # a ring of recorded bins
        self.reset()

    def reset(self) -> None:
        """Forget the block so far."""
        self._count = 0  # bins since the block began
        self._sum = np.zeros_like(self.mean)  # over the window, of what differs from the mean of training
        self._squares = self.window_bins * self.variance

    def step(self, bins: np.ndarray) -> np.ndarray:
        """Normalise recorded bins (n, C) -> (n, C) float32, any n; the same numbers however a block is cut."""
        parts = [self._step(part) for part in self._parts(bins)]
        return np.concatenate(parts) if parts else np.zeros(bins.shape, np.float32)

    def observe(self, bins: np.ndarray) -> None:
        """Let recorded bins (n, C) pass without normalising them: as `step`, to rounding, and faster."""
        for part in self._parts(bins):
            _, more, more_squares = self._exchange(part)
            self._sum += more.sum(0)
            self._squares += more_squares.sum(0)

    def _parts(self, bins: np.ndarray) -> list[np.ndarray]:
        """Runs of bins of which none leaves the window before all have entered it."""
        return [bins[first : first + self.window_bins] for first in range(0, len(bins), self.window_bins)]

    def _step(self, bins: np.ndarray) -> np.ndarray:
        deviations, sums, squares = self._exchange(bins)
        sums[0] += self._sum
        squares[0] += self._squares
        np.cumsum(sums, axis=0, out=sums)
        np.cumsum(squares, axis=0, out=squares)
        self._sum, self._squares = sums[-1].copy(), squares[-1].copy()
        sums /= self.window_bins
        squares /= self.window_bins
        deviations -= sums
        squares -= np.square(sums, out=sums)
        np.maximum(squares, LEAST_STD**2 * self.variance, out=squares)
        return (deviations / np.sqrt(squares, out=squares)).astype(np.float32)

    def _exchange(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take bins into the window: how they differ from the mean of training, and how each changes both sums."""
        places = (self._count + np.arange(len(bins))) % self.window_bins
        unfilled = (self._count + np.arange(len(bins)) < self.window_bins)[:, None]
        entering = bins - self.mean
        leaving = np.where(unfilled, 0.0, self._recent[places] - self.mean)
        leaving_squares = np.where(unfilled, self.variance, np.square(leaving))
        self._recent[places] = bins
        self._count += len(bins)
        return entering, entering - leaving, np.square(entering) - leaving_squares
