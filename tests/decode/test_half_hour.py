"""Frame by frame with the partial result after each, for long: arrays do not grow, nor does the process."""

import time
from pathlib import Path

import numpy as np
import pytest

from mode_ssm.decode.beam_arrays import COMMITTED
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MINUTE = 750  # frames of 80 ms


def speech(sentences, lexicon, frames, rng):
    """Noisy log-probabilities (frames, V) of sentences one after the other."""
    labels = []
    while len(labels) < frames:
        for word in str(rng.choice(sentences)).split():
            for phone in lexicon[word][0]:
                labels += [phone] * int(rng.integers(1, 3)) + [BLANK] * int(rng.integers(0, 3))
            labels += [SIL] * int(rng.integers(0, 2)) + [BLANK]
    logits = rng.normal(0, 1.7, (frames, NUM_CLASSES))
    logits[np.arange(frames), labels[:frames]] += 8
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def array_bytes(state):
    """Of all arrays of the search but the committed words."""
    parts = [part for name, part in state.search._asdict().items() if name != "committed"]
    return sum(array.nbytes for part in parts for array in (part if isinstance(part, tuple) else [part]))


def test_arrays_keep_their_size_frame_by_frame():
    rng = np.random.default_rng(0)
    lexicon = Lexicon({f"w{i}": [tuple(rng.integers(1, 40, rng.integers(2, 6)))] for i in range(400)})
    sentences = [" ".join(rng.choice(lexicon.words, 6)) for _ in range(300)]
    decoder = CtcWordDecoder(lexicon, NGramLM.estimate(sentences, 3, lexicon.words), beam_size=100)
    state, sizes = decoder.start(), []
    for frame in speech(sentences, lexicon, 4 * MINUTE, rng):
        decoder.step(state, frame)
        decoder.partial(state)
        sizes.append(array_bytes(state))
    assert len(set(sizes[MINUTE:])) == 1
    assert sizes[-1] < 2_000_000
    assert state.search.counters[COMMITTED] > 100
    committed_bytes = sum(array.nbytes for array in state.search.committed)
    assert committed_bytes <= 12 * 4 * max(1024, state.search.counters[COMMITTED])  # grown by doubling at most


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "lexicon").exists(), reason="the lexicon and text are not here")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read as Linux tells it")
def test_half_an_hour_with_the_whole_dictionary_keeps_pace_and_memory():
    lexicon = Lexicon.load(DATA / "lexicon" / "cmudict.dict")
    text = (DATA / "text" / "read.train.txt").read_text(encoding="utf-8").splitlines()
    decoder = CtcWordDecoder(lexicon, NGramLM.estimate(text, 3, lexicon.words), beam_size=300)
    spoken = [sentence for sentence in text if all(word in lexicon for word in sentence.split())][:2000]
    log_probs = speech(spoken, lexicon, 30 * MINUTE, np.random.default_rng(0))
    decoder.decode(log_probs[:50])  # compiles
    state, taken, resident = decoder.start(), [], []
    for place, frame in enumerate(log_probs):
        begin = time.thread_time()
        decoder.step(state, frame)
        decoder.partial(state)
        taken.append(time.thread_time() - begin)
        if place % MINUTE == MINUTE - 1:
            resident.append(resident_mb())
    assert np.percentile(taken, 99) < 2e-3
    assert array_bytes(state) < 20_000_000
    assert resident[-1] - resident[0] < 5
    assert len(decoder.finalize(state)[0].words) > 1000


def resident_mb():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1e3
