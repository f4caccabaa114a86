"""What is learned from: recordings, what is done to them before the model, and text."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class OnBadTrial(Enum):
    """What to do with a recording that breaks the format."""

    stop = "stop"
    skip = "skip"


class Smoothing(Enum):
    none = "none"
    symmetric = "symmetric"  # as the official pipeline: sees the future by half a kernel
    causal = "causal"


class Normalisation(Enum):
    """What is done to recorded features first of all."""

    released = "released"  # nothing: the benchmark's are z-scored by whole blocks, which no online decoder can know
    session = "session"  # mean and spread of the session's training trials; of all sessions where it has none
    rolling = "rolling"  # mean and spread of the block's past rolling_seconds, of the training split before them


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """Applied to training trials only; each is a pure function of (seed, epoch, trial).

    Cut, shift and warp come first, then gain, offset, noise and walk; smoothing follows, and last what becomes zero.
    """

    random_cut_bins: int = 0  # drop up to this many bins at the start
    time_shift_bins: int = 0  # begin up to this many bins later, with zeros in front, or earlier, with bins dropped
    time_warp: float = 0.0  # largest relative change of local speed
    static_gain: float = 0.0  # every feature times a constant of the trial, from 1 - this to 1 + this
    constant_offset_std: float = 0.0  # per feature, constant over the trial
    white_noise_std: float = 0.0  # per bin and feature
    random_walk_std: float = 0.0  # of a step from bin to bin, a walk for each feature
    electrode_dropout: float = 0.0  # chance of each electrode to be silent in a trial, with both its features
    array_dropout: float = 0.0  # chance that one of the arrays of 64 electrodes is silent in a trial
    feature_masks: int = 0  # how many bands of neighbouring features are silent in a trial
    feature_mask_max_fraction: float = 0.05  # each at most this part of the features
    time_masks: int = 0  # how many stretches become zero, or model.stem.mask_token
    time_mask_max_fraction: float = 0.05  # each at most this part of the trial


@dataclass(kw_only=True, slots=True)
class SimulateConfig:
    """The simulated dataset that is written to `data.root` when nothing is there."""

    enabled: bool = False
    scale: str = "small"  # tiny, small, medium (45 sessions, 1,100 trials) or full (10,948 trials, about 20 GB)
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class DataConfig:
    root: str = MISSING  # the folder that holds one folder a session
    feature_dim: int = 512
    on_bad_trial: OnBadTrial = OnBadTrial.stop
    batch_size: int = 32  # trials in a batch of one rank
    sessions_per_batch: int = 4  # a batch mixes at most this many sessions
    eval_batch_size: int = 32
    num_workers: int = 0
    cache_features: bool = False  # keep raw features in memory after the first read
    normalisation: Normalisation = Normalisation.released
    rolling_seconds: float = 60.0  # that normalisation=rolling looks back
    smoothing: Smoothing = Smoothing.symmetric
    smoothing_std: float = 2.0  # bins
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    train_sessions: list[str] | None = None  # null: all
    shuffle_labels: bool = False  # a control: sentences dealt out to the wrong recordings of the training split


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """What a language model learns from."""

    train: list[str] = field(default_factory=list)  # text files, one sentence a line
    valid: list[str] = field(default_factory=list)  # held-out ones, which pick the best checkpoint
    tokens_per_batch: int = 2048  # of one rank, about
