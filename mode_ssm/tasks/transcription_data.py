"""What transcription reads: the index of a dataset, its truth where it is known, and batches of it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mode_ssm.config import DataConfig, Normalisation, OnBadTrial, Smoothing
from mode_ssm.data.augmentation import BatchAugmentation
from mode_ssm.data.batch import Batch, TrialInfo
from mode_ssm.data.brain2text import load_features, load_phonemes
from mode_ssm.data.index import Index, build_index
from mode_ssm.data.loader import FeatureCache, TrialLoader, eval_batches, shuffled_labels
from mode_ssm.data.log_mel import BIN_SECONDS
from mode_ssm.data.normalisation import Normalise, RollingNormalisation, SessionNormalisation, as_released
from mode_ssm.data.sampler import BucketSampler
from mode_ssm.data.simulator import simulate
from mode_ssm.data.statistics import FeatureStatistics, merge
from mode_ssm.data.transforms import SignalTransform
from mode_ssm.data.truth import TruthRecord, read_truth
from mode_ssm.tasks.augmented_loader import AugmentedLoader
from mode_ssm.vocab import normalise_sentence

logger = logging.getLogger(__name__)


def ensure_data(config: DataConfig) -> None:
    """Simulate a dataset at `data.root` if nothing is there and the configuration asks for it.

    Raises `FileNotFoundError` in one line where nothing is there and nothing is to be simulated.
    """
    root = Path(config.root)
    if root.is_dir() and any(root.iterdir()):
        return
    if not config.simulate.enabled:
        raise FileNotFoundError(
            f"data.root={root} holds no recordings; put the sessions there, name another folder with data.root=..., "
            "or add data.simulate.enabled=true to simulate a dataset"
        )
    simulate(root, config.simulate.scale, config.simulate.seed)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a trial says: phonemes (U,), sentence; corpus and mode where the truth file tells."""

    phonemes: np.ndarray
    sentence: str
    corpus: str | None
    mode: str | None


@dataclass(slots=True)
class TranscriptionData:
    """A checked dataset. `sessions` are those the model knows: the training sessions, in order; their position is the
    row of the session adapter. `normalise` is what `data.normalisation` asks for."""

    config: DataConfig
    index: Index
    truth: dict[str, TruthRecord]
    sessions: list[str]
    seed: int
    cache: FeatureCache | None = field(default=None)
    normalise: Normalise = as_released

    @classmethod
    def open(
        cls, config: DataConfig, seed: int, sessions: Sequence[str] | None = None, progress: bool = True
    ) -> "TranscriptionData":
        """Index and check `config.root`. `sessions` None: those of the training split, or `data.train_sessions`."""
        index = build_index(
            config.root, feature_dim=config.feature_dim, on_bad_trial=config.on_bad_trial, progress=progress
        )
        recordings = [trial for trials in index.trials.values() for trial in trials]
        if config.train_sessions is not None:
            for name in config.train_sessions:
                if name not in index.sessions:
                    raise ValueError(f"data.train_sessions names {name!r}; there are {', '.join(index.sessions)}")
            kept = [t for t in index.trials["train"] if t.session in config.train_sessions]
            index.trials["train"] = kept
        if sessions is None:
            sessions = sorted({t.session for t in index.trials["train"]})
        cache = FeatureCache() if config.cache_features else None
        data = cls(config, index, read_truth(config.root), list(sessions), seed, cache)
        data.normalise = data._normalisation(recordings)
        return data

    def require_frames(self, num_frames: Callable[[int], int]) -> None:
        """Every training trial must give CTC a frame for each phoneme; others stop the run or are left out.

        num_frames: bins of a trial -> frames that the model makes of it.
        """
        short = [t for t in self.index.trials["train"] if num_frames(t.num_bins) < (t.num_phonemes or 0)]
        if not short:
            return
        listing = ", ".join(f"{t.name} ({t.num_bins} bins, {t.num_phonemes} phonemes)" for t in short[:5])
        if self.config.on_bad_trial is OnBadTrial.stop:
            raise ValueError(
                f"{len(short)} training trials give the model fewer frames than phonemes: {listing}; lower its stride "
                "or leave them out with data.on_bad_trial=skip"
            )
        logger.warning("left out %d training trials too short for their labels: %s", len(short), listing)
        names = {t.name for t in short}
        self.index.trials["train"] = [t for t in self.index.trials["train"] if t.name not in names]

    @property
    def session_index(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.sessions)}

    def blocks(self) -> list[tuple[str, int]]:
        """(session, block) of the training split, in order."""
        return sorted({(t.session, t.block) for t in self.index.trials["train"]})

    def statistics(self) -> tuple[FeatureStatistics, list[FeatureStatistics]]:
        """Of the normalised training split: overall, and of each session in `sessions`."""
        by_session = [self.session_statistics("train", name) for name in self.sessions]
        return merge(by_session), by_session

    def session_statistics(self, split: str, session: str) -> FeatureStatistics:
        """Of a session's normalised features in a split. Rolling ones have mean 0 and spread 1, as near as it goes."""
        recorded = self.index.statistics[split][session]
        if isinstance(self.normalise, SessionNormalisation):
            return self.normalise.of(session, recorded)
        if isinstance(self.normalise, RollingNormalisation):
            return FeatureStatistics(
                count=recorded.count, mean=np.zeros_like(recorded.mean), std=np.ones_like(recorded.std)
            )
        return recorded

    def _normalisation(self, recordings: Sequence[TrialInfo]) -> Normalise:
        """What `data.normalisation` asks for. Raises `ValueError` where training data that it needs are not there."""
        config = self.config
        if config.normalisation is Normalisation.released:
            return as_released
        of_training = self.index.statistics["train"]
        missing = [name for name in self.sessions if name not in of_training]
        if missing:
            raise ValueError(
                f"data.normalisation={config.normalisation.value} needs the statistics of the training data, and "
                f"data.root={config.root} has no training split of {', '.join(missing)}; released needs none"
            )
        by_session = {name: of_training[name] for name in self.sessions}
        overall = merge(by_session.values())
        if config.normalisation is Normalisation.session:
            return SessionNormalisation(by_session, overall)
        load = self.cache.load if self.cache is not None else load_features
        return RollingNormalisation(recordings, load, overall, round(config.rolling_seconds / BIN_SECONDS))

    def train_loader(self, rank: int, world_size: int, device: torch.device | str = "cpu") -> AugmentedLoader:
        """Augmented and smoothed on `device`."""
        config, trials = self.config, self.index.trials["train"]
        sampler = BucketSampler(trials, config.batch_size, config.sessions_per_batch, self.seed, rank, world_size)
        recorded = TrialLoader(
            trials,
            SignalTransform(Smoothing.none, 0.0, self.normalise),
            self.session_index,
            sampler,
            num_workers=config.num_workers,
            cache=self.cache,
            label_sources=shuffled_labels(trials, self.seed) if config.shuffle_labels else None,
        )
        augmentation = BatchAugmentation(config.augment, config.smoothing, config.smoothing_std, self.seed, device)
        return AugmentedLoader(recorded, augmentation)

    def batches(self, trials: Sequence[TrialInfo], batch_size: int | None = None) -> Iterator[Batch]:
        """Evaluation batches, longest trials first; `batch_size` None is `data.eval_batch_size`."""
        config = self.config
        transform = SignalTransform(config.smoothing, config.smoothing_std, self.normalise)
        return eval_batches(
            trials,
            transform,
            self.session_index,
            batch_size or config.eval_batch_size,
            num_workers=config.num_workers,
            cache=self.cache,
        )

    def trials(self, split: str) -> list[TrialInfo]:
        """Raises `ValueError` where the split is empty."""
        trials = self.index.trials.get(split)
        if not trials:
            present = [name for name, found in self.index.trials.items() if found]
            raise ValueError(f"split={split} holds no trials under data.root={self.config.root}; there are {present}")
        return trials

    def has_labels(self, split: str) -> bool:
        return all(t.num_phonemes is not None or t.name in self.truth for t in self.trials(split))

    def reference(self, info: TrialInfo) -> Reference:
        """From the file, or from the truth beside it where the file withholds labels."""
        truth = self.truth.get(info.name)
        phonemes = load_phonemes(info)
        if phonemes is None or info.sentence is None:
            if truth is None:
                raise ValueError(f"{info.name} has no labels, and {self.config.root} no truth file that names it")
            return Reference(np.array(truth.phonemes), truth.sentence, truth.corpus, truth.mode)
        known = (truth.corpus, truth.mode) if truth is not None else (None, None)
        return Reference(phonemes, info.sentence, *known)

    def training_sentences(self) -> list[str]:
        """Normalised sentences of the training split, repeats kept: a language model counts them."""
        return [normalise_sentence(t.sentence) for t in self.index.trials["train"] if t.sentence]


def without_labels(batch: Batch) -> Batch:
    """The batch as adaptation may see it."""
    return replace(batch, targets=batch.targets[:, :0], target_lengths=batch.target_lengths.new_zeros(len(batch)))
