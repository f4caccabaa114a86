"""What a second language model changes in the scores of the compiled search."""

from mode_ssm.decode.beam_arrays import HISTORIES, HYPOTHESES, SearchArrays, Settings
from mode_ssm.decode.compiled import compiled
from mode_ssm.decode.history_kernel import fused_score, shared_history


@compiled
def forget_corrections(search: SearchArrays) -> bool:
    """Histories that no hypothesis extends are unseen again; returns whether there were any that had been seen.

    At every turn of the second model, because the search must not depend on when such histories leave the tree.
    """
    histories, forgotten = search.histories, False
    shared_history(search)  # marks those that live
    for number in range(1, search.counters[HISTORIES]):
        if histories.mark[number] == 0 and histories.late_state[number] >= 0:
            histories.late_state[number] = -1
            forgotten = True
    return forgotten


@compiled
def spread_corrections(search: SearchArrays, settings: Settings) -> None:
    """Let new corrections count: in the scores of the hypotheses, and for words that a second model has yet to see."""
    histories, hypotheses = search.histories, search.hypotheses
    for i in range(search.counters[HYPOTHESES]):
        hypotheses.score[i] -= histories.fused[hypotheses.history[i]]
    for number in range(search.counters[HISTORIES]):
        parent = histories.parent[number]
        histories.gain[number] = 0.0
        if histories.late_state[number] < 0:
            histories.correction[number] = histories.correction[parent]
        elif parent >= 0:
            gain = histories.correction[number] - histories.correction[parent]
            histories.gain[parent] = max(histories.gain[parent], gain)
        histories.fused[number] = fused_score(
            settings.lm_scale,
            settings.word_bonus,
            histories.lm_log_prob[number],
            histories.num_words[number],
            histories.correction[number],
        )
    for i in range(search.counters[HYPOTHESES]):
        hypotheses.score[i] += histories.fused[hypotheses.history[i]]
