"""How hard simulated data are: the figures that docs/simulator.md quotes.

    OMP_NUM_THREADS=1 uv run python benchmarks/simulator_difficulty.py [--root FOLDER] [--only linear,gru,drift,mode]

(a) linear   frame-wise multinomial logistic regression that is given the true alignment, val phoneme error rate (PER)
(b) gru      plain 3-layer GRU with session layers, trained with CTC for two minutes on all sessions, val PER
(c) drift    the same without session layers, trained on the first three sessions: PER there and on the last session
(d) mode     silent or vocalised from a trial's second-order statistics, blocks left out in turn: accuracy
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn import functional as F

from mode_ssm.data.simulator import simulate
from mode_ssm.data.simulator_scale import SCALES
from mode_ssm.data.t15_format import session_file
from mode_ssm.data.truth import TruthRecord, read_truth
from mode_ssm.vocab import NUM_CLASSES

SMOOTHING = 2.0  # bins, as the official recipe
DROPOUT = 0.3
SESSION_RATE = 0.3  # learning rate of a session's own weights, as a share of the others'
NOISE = 0.2  # added to smoothed features, whose own noise is about 0.4
CONSOLE = Console()


@dataclass(frozen=True, slots=True)
class Sample:
    truth: TruthRecord
    block: int
    features: np.ndarray  # (T, 512), smoothed
    raw: np.ndarray


def load(root: Path, split: str) -> list[Sample]:
    samples = []
    for record in read_truth(root).values():
        if record.split == split:
            with h5py.File(session_file(root, record.session, split)) as file:
                group = file[record.name.rsplit("/", 1)[1]]
                raw = group["input_features"][:]
                smooth = gaussian_filter1d(raw, SMOOTHING, axis=0, mode="nearest")
                samples.append(Sample(record, int(group.attrs["block_num"]), smooth, raw))
    return samples


def edit_distance(reference: list[int], hypothesis: list[int]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, h in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (r != h))
    return row[-1]


# (a) ------------------------------------------------------------------------------------------------------------------


def frame_labels(record: TruthRecord, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """(bins, segment of each): activity at bin n is given the phoneme that is articulated at n + shift."""
    assert record.phoneme_starts is not None
    ends = [*record.phoneme_starts[1:], record.phoneme_starts[-1] + 8]
    spans = [np.arange(a, b) - shift for a, b in zip(record.phoneme_starts, ends, strict=True)]
    bins = np.clip(np.concatenate(spans), 0, record.num_bins - 1)
    return bins, np.repeat(np.arange(len(spans)), [len(s) for s in spans])


def fit_linear(features: Tensor, labels: Tensor, decay: float, epochs: int = 6) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(features.shape[1], NUM_CLASSES)
    nn.init.zeros_(model.weight)
    steps = epochs * (len(features) // 512 + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(features)).split(512):
            optimizer.zero_grad()
            F.cross_entropy(model(features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model


def linear_per(train: list[Sample], val: list[Sample], shift: int, decay: float) -> tuple[float, float]:
    """PER by majority of frames and by summed log probability, each within the true segments."""
    parts = [(s, *frame_labels(s.truth, shift)) for s in train]
    x = torch.from_numpy(np.concatenate([s.features[bins] for s, bins, _ in parts]))
    y = torch.from_numpy(np.concatenate([np.array(s.truth.phonemes)[segments] for s, _, segments in parts]))
    model = fit_linear(x, y, decay)
    wrong = np.zeros(2)
    total = 0
    for sample in val:
        bins, segments = frame_labels(sample.truth, shift)
        truth = np.array(sample.truth.phonemes)
        with torch.no_grad():
            log_probs = model(torch.from_numpy(sample.features[bins])).log_softmax(1).numpy()
        votes = np.zeros((len(truth), NUM_CLASSES))
        np.add.at(votes, (segments, log_probs.argmax(1)), 1)
        summed = np.zeros((len(truth), NUM_CLASSES))
        np.add.at(summed, segments, log_probs)
        wrong += [(votes.argmax(1) != truth).sum(), (summed.argmax(1) != truth).sum()]
        total += len(truth)
    majority, likelihood = 100 * wrong / total
    return majority, likelihood


def percentages(majority: float, summed: float) -> str:
    return f"majority {majority:.1f} %, summed {summed:.1f} %"


def measure_linear(train: list[Sample], val: list[Sample], table: Table) -> None:
    results = {}
    for shift in track((2, 4, 6), "linear, all sessions together", console=CONSOLE):
        results[shift] = linear_per(train, val, shift, 0.01)
    shift = min(results, key=lambda s: min(results[s]))
    table.add_row(f"(a) linear, all sessions, lead {shift}", percentages(*results[shift]))
    sessions = sorted({s.truth.session for s in val})
    scores, sizes = [], []
    for name in track(sessions, "linear, one a session", console=CONSOLE):
        own = [s for s in val if s.truth.session == name]
        scores.append(linear_per([s for s in train if s.truth.session == name], own, shift, 0.3))
        sizes.append(sum(len(s.truth.phonemes) for s in own))
    means = np.average(scores, axis=0, weights=sizes)
    table.add_row("(a) linear, one a session", percentages(*means))


# (b), (c) -------------------------------------------------------------------------------------------------------------


class PlainGRU(nn.Module):
    """The official recipe in small: an affine map a session, patches of 12 bins every 4, 3 layers of width 160.

    Bidirectional (80 each way): three layers that only look back stay for tens of epochs where CTC knows SIL alone.
    """

    def __init__(self, sessions: list[str], *, adapt: bool, squeezed: int = 128, width: int = 160) -> None:
        super().__init__()
        self.index = {name: i if adapt else 0 for i, name in enumerate(sessions)}
        count = len(sessions) if adapt else 1
        self.weight = nn.Parameter(torch.randn(512, squeezed) / 512**0.5)
        self.session_weight = nn.Parameter(torch.zeros(count, 512, squeezed))
        self.session_bias = nn.Parameter(torch.zeros(count, 1, squeezed))
        self.patch = nn.Conv1d(squeezed, width, 12, stride=4, padding=4)
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width // 2, 3, batch_first=True, bidirectional=True, dropout=DROPOUT)
        self.head = nn.Linear(width, NUM_CLASSES)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, lengths: Tensor, sessions: list[str]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([self.index.get(name, 0) for name in sessions])
        x = F.softsign(torch.baddbmm(self.session_bias[rows], x, self.weight + self.session_weight[rows]))
        x = self.drop(self.norm(self.patch(x.transpose(1, 2)).transpose(1, 2)))
        return self.head(self.gru(x)[0]).log_softmax(2), (lengths - 4) // 4


def train_gru(train: list[Sample], *, adapt: bool, seconds: float, rate: float = 3e-3) -> PlainGRU:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = PlainGRU(sorted({s.truth.session for s in train}), adapt=adapt)
    own = [p for name, p in model.named_parameters() if name.startswith("session_")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("session_")]
    optimizer = torch.optim.AdamW([{"params": rest, "lr": rate}, {"params": own, "lr": SESSION_RATE * rate}])
    peaks = [group["lr"] for group in optimizer.param_groups]
    ordered = sorted(train, key=lambda s: s.truth.num_bins)
    batches = [ordered[i : i + 16] for i in range(0, len(ordered), 16)]
    start = time.process_time()
    epoch = 0
    while (spent := time.process_time() - start) < seconds:
        epoch += 1
        for i in rng.permutation(len(batches)):
            batch = batches[i]
            spent = (time.process_time() - start) / seconds
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * min(1, spent / 0.05) * max(0.02, 0.5 * (1 + np.cos(np.pi * min(1, spent))))
            lengths = torch.tensor([s.truth.num_bins for s in batch])
            x = torch.zeros(len(batch), int(lengths.max()), 512)
            for row, s in enumerate(batch):
                x[row, : len(s.raw)] = torch.from_numpy(s.features) + 0.1 * torch.randn(1, 512)
            x += NOISE * torch.randn_like(x)
            log_probs, out_lengths = model(x, lengths, [s.truth.session for s in batch])
            targets = torch.cat([torch.tensor(s.truth.phonemes) for s in batch])
            sizes = torch.tensor([len(s.truth.phonemes) for s in batch])
            loss = F.ctc_loss(log_probs.transpose(0, 1), targets, out_lengths, sizes, zero_infinity=True)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            if time.process_time() - start > seconds:
                break
    CONSOLE.print(f"{epoch} epochs, last loss {loss.item():.3f}")
    return model


def gru_per(model: PlainGRU, samples: list[Sample]) -> float:
    model.eval()
    wrong = total = 0
    for s in samples:
        with torch.no_grad():
            log_probs, _ = model(torch.from_numpy(s.features)[None], torch.tensor([len(s.raw)]), [s.truth.session])
        best = log_probs[0].argmax(1).unique_consecutive().tolist()
        wrong += edit_distance(s.truth.phonemes, [k for k in best if k != 0])
        total += len(s.truth.phonemes)
    return 100 * wrong / total


def measure_gru(train: list[Sample], val: list[Sample], seconds: float, table: Table) -> None:
    model = train_gru(train, adapt=True, seconds=seconds)
    table.add_row("(b) GRU, all sessions", f"{gru_per(model, val):.1f} %")
    for mode in ("vocalised", "silent"):
        table.add_row(f"    {mode}", f"{gru_per(model, [s for s in val if s.truth.mode == mode]):.1f} %")
    for name in sorted({s.truth.session for s in val}):
        table.add_row(f"    {name}", f"{gru_per(model, [s for s in val if s.truth.session == name]):.1f} %")


def measure_drift(train: list[Sample], val: list[Sample], seconds: float, table: Table) -> None:
    names = sorted({s.truth.session for s in train})
    early, last = names[:3], names[-1]
    model = train_gru([s for s in train if s.truth.session in early], adapt=False, seconds=seconds)
    for name in sorted({s.truth.session for s in val}):
        seen = "trained on" if name in early else "unseen, last" if name == last else "unseen"
        per = gru_per(model, [s for s in val if s.truth.session == name])
        table.add_row(f"(c) {name} ({seen})", f"{per:.1f} %")
    own = gru_per(model, [s for s in val if s.truth.session in early])
    far = gru_per(model, [s for s in val if s.truth.session == last])
    table.add_row("(c) lost on the last session", f"{far - own:.1f} points")


# (d) ------------------------------------------------------------------------------------------------------------------


def covariances(samples: list[Sample], directions: int = 24) -> np.ndarray:
    """(trials, entries): each trial's covariance within the session's strongest directions."""
    everything = np.concatenate([s.features for s in samples])
    values, vectors = np.linalg.eigh(everything.T @ everything / len(everything))
    basis = vectors[:, -directions:] / np.sqrt(values[-directions:])
    projected = [s.features @ basis for s in samples]
    return np.stack([(p.T @ p / len(p))[np.triu_indices(directions)] for p in projected])


def measure_mode(samples: list[Sample], table: Table) -> None:
    """Ridge regression within a session, each block predicted from the others."""
    right = 0
    for name in sorted({s.truth.session for s in samples}):
        own = [s for s in samples if s.truth.session == name]
        x = covariances(own)
        y = np.array([1.0 if s.truth.mode == "silent" else -1.0 for s in own])
        blocks = np.array([s.block for s in own])
        for block in np.unique(blocks):
            fit = blocks != block
            mean, std = x[fit].mean(0), x[fit].std(0)
            balance = np.sqrt(1 / np.array([np.mean(y[fit] == label) for label in y[fit]]))[:, None]
            a, b = (x[fit] - mean) / std * balance, (x[~fit] - mean) / std
            dual = np.linalg.solve(a @ a.T + a.shape[1] * np.eye(len(a)), y[fit] * balance[:, 0])
            right += int((np.sign(b @ (a.T @ dual)) == y[~fit]).sum())
    table.add_row("(d) mode, blocks left out", f"{100 * right / len(samples):.1f} % right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="simulated data; made afresh when not given")
    parser.add_argument("--scale", default="small", choices=sorted(SCALES))
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--only", default="linear,gru,drift,mode", help="comma-separated parts")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of each GRU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary) / "data"
        if arguments.root is None:
            simulate(root, arguments.scale, arguments.seed)
        train, val = load(root, "train"), load(root, "val")
        table = Table("measure", "value", title=f"{root.name}: {len(train)} train, {len(val)} val")
        parts = arguments.only.split(",")
        if "linear" in parts:
            measure_linear(train, val, table)
        if "mode" in parts:
            measure_mode(train + val, table)
        if "gru" in parts:
            measure_gru(train, val, arguments.seconds, table)
        if "drift" in parts:
            measure_drift(train, val, arguments.seconds, table)
        CONSOLE.print(table)


if __name__ == "__main__":
    main()
