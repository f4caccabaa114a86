import pickle

import numpy as np
import pytest

from mode_ssm.decode.batch import decode_batch
from mode_ssm.decode.beam_kernel import advance
from mode_ssm.decode.ctc_beam import CtcWordDecoder
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.vocab import NUM_CLASSES


@pytest.fixture(scope="module")
def decoder():
    lexicon = Lexicon({"a": [(1, 2)], "b": [(2,), (3, 1)], "c": [(3,)]})
    return CtcWordDecoder(lexicon, NGramLM.estimate(["a b c", "c b", "b a"], 3), beam_size=20, nbest=3)


def utterances(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        logits = rng.normal(0, 2, (rng.integers(1, 12), NUM_CLASSES))
        yield (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def test_worker_processes_change_nothing_but_time(decoder):
    log_probs = list(utterances(20))
    calls = []
    alone = decode_batch(decoder, log_probs)
    together = decode_batch(decoder, log_probs, processes=2, progress=lambda done, total: calls.append((done, total)))
    assert together == alone == [decoder.decode(item) for item in log_probs]
    assert calls == [(done, 20) for done in range(1, 21)]


def test_an_error_of_a_worker_reaches_the_caller(decoder):
    with pytest.raises(ValueError, match=r"must be \(frames, 41\)"):
        decode_batch(decoder, [*utterances(3), np.zeros((2, 5), np.float32)], processes=2)


def test_no_utterances_and_no_processes(decoder):
    assert decode_batch(decoder, []) == []
    assert decode_batch(decoder, [], processes=4) == []
    with pytest.raises(ValueError, match="processes must be at least 1, not 0"):
        decode_batch(decoder, [], processes=0)


def test_a_copy_of_a_decoder_runs_the_same_compiled_code(decoder):
    copy = pickle.loads(pickle.dumps(decoder))
    assert not any(array.flags.writeable for array in (*copy._graph.tree, *copy._graph.lm))
    log_probs = list(utterances(3))
    compiled = len(advance.signatures)
    assert [copy.decode(item) for item in log_probs] == [decoder.decode(item) for item in log_probs]
    assert len(advance.signatures) == max(compiled, 1)
