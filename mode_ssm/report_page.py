"""The page of a report: sections of HTML from a summary, results, history and an example."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from mode_ssm.metrics import align
from mode_ssm.report_history import LOSS, VALIDATION_PER, Stage, series
from mode_ssm.report_plots import confusion_figure, session_figure, training_figure
from mode_ssm.tasks.results import TrialResult, trial_errors
from mode_ssm.vocab import BLANK, CLASSES, NUM_CLASSES, ids_to_phonemes, normalise_sentence

WORST, SAMPLE, CONFUSIONS = 10, 10, 12
FOLD_SESSIONS = 12  # a longer table of sessions starts folded
NOTHING = "–"


def page(title: str, sections: Iterable[str], footer: str) -> str:
    """A whole document without anything to fetch: style and figures are inside."""
    style = resources.files("mode_ssm").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def percent(rate: float | None) -> str:
    return NOTHING if rate is None else f"{100 * rate:.1f}"


def interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}"


def headline_section(title: str, summary: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Title, the three rates as large figures, the rates of each output, and what is compared with them."""
    cards = []
    for metric, name in (("wer", "word error rate"), ("per", "phoneme error rate"), ("cer", "character error rate")):
        if summary[metric] is None:
            cards.append(f'<div class="card"><span>{name}</span><b>{NOTHING}</b><span>words not decoded</span></div>')
        else:
            cards.append(
                f'<div class="card"><span>{name}</span><b>{percent(summary[metric])}&thinsp;%</b>'
                f"<span>95&nbsp;% interval {interval(summary[f'{metric}_ci'])}</span></div>"
            )
    counts = summary["counts"]
    described = [
        f"{summary['num_trials']} trials of split {summary['split']}",
        f"{counts['phonemes']['reference']:,} phonemes, {counts['phonemes']['edits']:,} edits",
    ]
    if summary["wer"] is not None:
        described.append(f"{counts['words']['reference']:,} words, {counts['words']['edits']:,} edits")
    if summary["empty_hypotheses"]:
        described.append(f"{summary['empty_hypotheses']} trials decoded to no word")
    lines = [f"<h1>{escape(title)}</h1>", f'<p class="note">{"; ".join(described)}.</p>']
    lines += [f'<p class="note">{escape(note)}</p>' for note in notes]
    lines += [f'<div class="cards">{"".join(cards)}</div>', _heads_sentence(summary), _adaptation_sentence(summary)]
    return "\n".join(lines)


def _heads_sentence(summary: Mapping[str, Any]) -> str:
    heads = [
        f"{name} {percent(summary[key])}&nbsp;%"
        for key, name in (("per_greedy_ctc", "CTC alone (greedy)"), ("per_rnnt", "transducer alone"))
        if summary[key] is not None
    ]
    return f"<p>Phoneme error rate of each head: {', '.join(heads)}.</p>" if heads else ""


def _adaptation_sentence(summary: Mapping[str, Any]) -> str:
    change = summary["tta_wer_change"]
    if change is None:
        return ""
    value, low, high = (f"{100 * change[key]:+.1f}".replace("-", "−") for key in ("value", "low", "high"))
    return (
        f"<p>Test-time adaptation: WER {percent(summary['wer_without_tta'])}&nbsp;% without it, "
        f"{percent(summary['wer'])}&nbsp;% with it; a change of {value} points "
        f"(95&nbsp;% interval {low} to {high}).</p>"
    )


def groups_section(summary: Mapping[str, Any]) -> str:
    """Seen and unseen sentences, corpora and modes, where there is more than one of a kind."""
    kinds = (("by_seen", "sentences, in training too or not"), ("by_corpus", "corpus"), ("by_mode", "mode"))
    groups = {name: summary[key] for key, name in kinds if len(summary[key]) > 1}
    return "<h2>Groups of trials</h2>\n" + _group_table("group", groups, summary) if groups else ""


def sessions_section(summary: Mapping[str, Any]) -> str:
    sessions = summary["by_session"]
    caption = "Dots: aggregate rate; bars: 95&nbsp;% bootstrap interval over trials; dashed: the whole split"
    if summary["wer_without_tta"] is not None:
        caption += "; open circles: before adaptation"
    rates, fold = _group_table("session", {"": sessions}, summary), len(sessions) > FOLD_SESSIONS
    return (
        f"<h2>Sessions</h2>\n{_plot(session_figure(summary), f'{caption}.')}\n"
        + (f"<details><summary>Table of {len(sessions)} sessions</summary>{rates}</details>" if fold else rates)
        + _adaptation_table(summary.get("adaptation"))
    )


def _group_table(head: str, kinds: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """Rates of groups with intervals; a line above the groups of each kind where there are several kinds."""
    columns = [("per", "PER %"), ("wer", "WER %"), ("wer_without_tta", "WER % without adaptation"), ("cer", "CER %")]
    columns = [(key, name) for key, name in columns if summary[key] is not None]
    rows: list[list[str]] = []
    for kind, groups in kinds.items():
        if len(kinds) > 1:
            rows.append([escape(kind)])
        for name, group in groups.items():
            cells = [escape(name), str(group["num_trials"])]
            for key, _ in columns:
                bounds = interval(group.get(f"{key}_ci"))
                cells.append(percent(group[key]) + (f'<span class="ci">{bounds}</span>' if bounds else ""))
            rows.append(cells)
    return table([head, "trials", *(name for _, name in columns)], rows)


def _adaptation_table(adaptation: Mapping[str, Any] | None) -> str:
    if not adaptation:
        return ""
    rows = [
        [
            escape(session),
            str(row["steps"]),
            f"{row['entropy_before']:.3f}",
            f"{row['entropy_after']:.3f}",
            "undone" if row["refused"] else "kept",
        ]
        for session, row in adaptation.items()
    ]
    return "<h3>What adaptation did</h3>\n" + table(["session", "steps", "entropy before", "after", "outcome"], rows)


def training_section(stages: Sequence[Stage]) -> str:
    """Losses by stage, and validation PER at the end of each."""
    if not stages:
        return ""
    rows = []
    for number, stage in enumerate(stages, start=1):
        _, pers = series(stage.evaluations, VALIDATION_PER)
        loss, seconds = stage.last(LOSS), stage.seconds
        rows.append(
            [
                f"{number} {escape(stage.name.replace('_', ' '))}",
                str(stage.last_step),
                NOTHING if seconds is None else f"{seconds / 60:.1f}",
                NOTHING if loss is None else f"{loss:.3f}",
                percent(min(pers)) if pers else NOTHING,
                percent(pers[-1]) if pers else NOTHING,
            ]
        )
    head = ["stage", "until step", "minutes", "loss", "best val PER %", "last val PER %"]
    return (
        "<h2>Training, stage by stage</h2>\n"
        + table(head, rows)
        + _plot(
            training_figure(stages),
            "Bands are the stages of the table. A loss term stands only in the stages that weigh it; each is divided "
            "by its own count. Validation PER is of greedy CTC.",
        )
    )


def confusion_section(results: Sequence[TrialResult]) -> str:
    """Which phonemes are taken for which: the matrix, and the most frequent errors."""
    confusions = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)  # class 0 stands for "nothing" on either side
    for result in results:
        for spoken, decoded in align(list(result.reference_phonemes), list(result.phonemes)):
            confusions[spoken or BLANK, decoded or BLANK] += 1
    errors = Counter(
        {(int(i), int(j)): int(confusions[i, j]) for i, j in np.argwhere(confusions) if i != j}
    ).most_common(CONFUSIONS)
    if not errors:
        return ""
    spoken_totals = confusions.sum(axis=1)
    rows = [
        [
            CLASSES[i] if i else "nothing",
            CLASSES[j] if j else "nothing",
            str(count),
            f"{100 * count / spoken_totals[i]:.1f}" if i else NOTHING,
        ]
        for (i, j), count in errors
    ]
    without_insertions = confusions.copy()
    without_insertions[BLANK] = 0
    return (
        '<h2>Phoneme errors</h2>\n<div class="pair">'
        f"<figure>{confusion_figure(without_insertions)}</figure><div><h3>Most frequent</h3>"
        + table(["spoken", "decoded", "count", "% of spoken"], rows, text_columns=2)
        + "</div></div>"
    )


def trials_section(results: Sequence[TrialResult], seed: int = 0) -> str:
    """The worst trials, and a random sample of the others, with their differences marked."""
    ranked = sorted(results, key=_badness, reverse=True)
    worst, others = ranked[:WORST], ranked[WORST:]
    drawn = np.random.default_rng(seed).permutation(len(others))[:SAMPLE]
    parts = [
        "<h2>Trials</h2>",
        '<p class="note">In what was said, <mark class="missed">struck</mark> was missed or replaced; in what was '
        'decoded, <mark class="wrong">underlined</mark> was not said.</p>',
        "<h3>Worst</h3>",
        *(_trial(result) for result in worst),
    ]
    if len(drawn):
        parts += ["<h3>A random sample of the others</h3>", *(_trial(others[i]) for i in sorted(drawn.tolist()))]
    return "\n".join(parts)


def _badness(result: TrialResult) -> tuple[float, int]:
    errors = trial_errors(result)
    error = errors.per if errors.wer is None else errors.wer
    return (error.edits / max(error.reference_length, 1), errors.per.edits)


def _trial(result: TrialResult) -> str:
    errors = trial_errors(result)
    who = [escape(result.info.name), f"block {result.info.block}"]
    who += [escape(label) for label in (result.corpus, result.mode) if label is not None]
    if errors.wer is not None:
        who.append(f"WER {percent(errors.wer.rate)}&nbsp;%")
    who.append(f"PER {percent(errors.per.rate)}&nbsp;%")
    return f'<div class="trial"><div class="who">{" · ".join(who)}</div>{comparison(result)}</div>'


def comparison(result: TrialResult) -> str:
    """Said and decoded, words where they were decoded and phonemes elsewhere, differences marked."""
    if result.words is None:
        spoken, decoded = ids_to_phonemes(result.reference_phonemes), ids_to_phonemes(result.phonemes)
        return _said(spoken, [("decoded", decoded)])
    rows = [("decoded", normalise_sentence(result.words).split())]
    if result.words_without_tta is not None and result.words_without_tta != result.words:
        rows.append(("unadapted", normalise_sentence(result.words_without_tta).split()))
    return _said(normalise_sentence(result.reference_sentence).split(), rows)


def _said(spoken: Sequence[str], hypotheses: Sequence[tuple[str, Sequence[str]]]) -> str:
    missed = [_marked(a, a != b, "missed") for a, b in align(spoken, hypotheses[0][1]) if a is not None]
    rows = [("said", missed)]
    for name, words in hypotheses:
        rows.append((name, [_marked(b, a != b, "wrong") for a, b in align(spoken, words) if b is not None]))
    cells = "".join(f"<span>{name}</span><span>{' '.join(words) or NOTHING}</span>" for name, words in rows)
    return f'<div class="said">{cells}</div>'


def _marked(word: str, differs: bool, kind: str) -> str:
    return f'<mark class="{kind}">{escape(word)}</mark>' if differs else escape(word)


def _plot(svg: str, caption: str) -> str:
    return f'<figure class="plot">{svg}<figcaption>{caption}</figcaption></figure>'


def config_section(config_yaml: str) -> str:
    return f"<h2>Configuration</h2>\n<details><summary>Show</summary><pre>{escape(config_yaml)}</pre></details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Cells of `rows` are HTML already; the first `text_columns` are aligned left. A row of one cell is a heading."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = [' class="left"' if number < text_columns else "" for number in range(len(cells))]
        return "".join(f"<{tag}{side}>{cell}</{tag}>" for side, cell in zip(sides, cells, strict=True))

    body = ""
    for row in rows:
        if len(row) == 1:
            body += f'<tr class="kind"><td colspan="{len(head)}">{row[0]}</td></tr>'
        else:
            body += f"<tr>{line('td', row)}</tr>"
    header = line("th", [escape(name).replace(" %", "&nbsp;%") for name in head])
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'
