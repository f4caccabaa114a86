"""The transducer word search in the plainest form: a dictionary of states. What `TransducerWordDecoder` is tested
against.

Shapes: T frames, J d_joint.
"""

import math

import numpy as np

from mode_ssm.decode.histories import Histories, hypotheses_of
from mode_ssm.decode.hypothesis import Hypothesis
from mode_ssm.decode.transducer_words import TransducerWordDecoder
from mode_ssm.vocab import BLANK, NUM_CLASSES, SIL

State = tuple[int, int, int]  # word history, tree node (0 at all boundaries), context
Masses = dict[State, float]  # log-probability of all alignments that end in a state


def decode_transducer_reference(decoder: TransducerWordDecoder, projected: np.ndarray) -> list[Hypothesis]:
    """`decoder.decode(projected)`, (T, J), without frames and confidences of the words."""
    search = _Search(decoder)
    for frame in projected:
        search.step(frame)
    return search.finalize()


class _Search:
    def __init__(self, decoder: TransducerWordDecoder) -> None:
        self._decoder, self._options, self._tree = decoder, decoder.options, decoder.tree
        self._histories = Histories(decoder.fusion, decoder.words)
        self._internal_lm = decoder.tables.internal_lm()
        self._beam: Masses = {(0, 0, 0): 0.0}
        self._num_frames = 0

    def step(self, frame: np.ndarray) -> None:
        """Advance by one projected frame (J,)."""
        finished: Masses = {}
        emitting = self._beam
        for emitted in range(self._options.max_symbols + 1):
            scores = self._label_scores(frame, emitting)
            for state, mass in emitting.items():
                _add(finished, state, mass + scores[state[2]][BLANK])
            if emitted < self._options.max_symbols:
                longer = self._emit(emitting, scores, self._floor(finished))
                emitting = self._best(longer, max(self._best_score(finished), self._best_score(longer)))
        self._beam = self._best(finished, self._best_score(finished))
        self._num_frames += 1
        delayed = self._decoder.delayed
        if delayed is not None and delayed.every > 0 and self._num_frames % delayed.every == 0:
            self._histories.correct(np.unique([state[0] for state in self._beam]), delayed)

    def _label_scores(self, frame: np.ndarray, states: Masses) -> dict[int, np.ndarray]:
        contexts = sorted({context for _, _, context in states})
        scores = self._decoder.tables.log_probs(frame, np.array(contexts, np.int64))
        scores -= self._options.ilm_scale * self._internal_lm[contexts]
        scores[:, BLANK] -= self._options.blank_penalty
        scores[:, SIL] += self._options.silence_score
        return dict(zip(contexts, scores, strict=True))

    def _emit(self, states: Masses, scores: dict[int, np.ndarray], floor: float) -> Masses:
        """The states after one more label; ways to them that score below `floor` are left out."""
        tree, longer = self._tree, Masses()
        for (history, node, context), mass in states.items():
            silent = node == 0 and context % NUM_CLASSES == SIL
            place = SIL if silent else node
            for child in tree.child[tree.child_start[place] : tree.child_start[place + 1]].tolist():
                label = int(tree.label[child])
                arrived = mass + float(scores[context][label])
                after = self._decoder.tables.follow(context, label)
                ways = []
                if child == SIL:
                    ways.append((history, 0, after))
                elif tree.child_start[child + 1] > tree.child_start[child]:
                    ways.append((history, child, after))
                words = tree.word[tree.word_start[child] : tree.word_start[child + 1]]
                longer_histories = self._histories.extend(np.full(len(words), history), words)
                ways += [(ended, 0, after) for ended in longer_histories.tolist()]
                for state in ways:
                    if self._score(state, arrived) >= floor:
                        _add(longer, state, arrived)
        return longer

    def _score(self, state: State, mass: float) -> float:
        history, node, _ = state
        fused = float(self._histories.fused(np.array([history]))[0])
        return self._options.acoustic_scale * mass + fused + float(self._decoder.look_ahead[node])

    def _best_score(self, states: Masses) -> float:
        return max((self._score(*item) for item in states.items()), default=-math.inf)

    def _floor(self, finished: Masses) -> float:
        """What is worse does not get among the states that have left the frame already."""
        scores = sorted((self._score(*item) for item in finished.items()), reverse=True)
        if not scores:
            return -math.inf
        in_beam = scores[self._options.beam_size - 1] if len(scores) >= self._options.beam_size else -math.inf
        return max(in_beam, scores[0] - self._options.beam_threshold)

    def _best(self, states: Masses, best: float) -> Masses:
        scored = {state: self._score(state, mass) for state, mass in states.items()}
        lowest = best - self._options.beam_threshold
        kept = sorted((state for state in states if scored[state] >= lowest), key=lambda state: -scored[state])
        return {state: states[state] for state in kept[: self._options.beam_size]}

    def finalize(self) -> list[Hypothesis]:
        complete = {state: mass for state, mass in self._beam.items() if state[1] == 0}
        if not any(history > 0 for history, _, _ in complete):
            complete = self._beam
        masses = ((history, mass) for (history, _, _), mass in complete.items())
        return hypotheses_of(self._histories, masses, self._options, self._decoder.delayed)


def _add(states: Masses, state: State, mass: float) -> None:
    if mass > -math.inf:
        states[state] = float(np.logaddexp(states.get(state, -math.inf), mass))
