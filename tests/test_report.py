"""The report: one page that needs nothing else and shows the numbers of its JSON."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mode_ssm.data.batch import TrialInfo
from mode_ssm.report import ExampleTrial, choose_example, print_table, write_report
from mode_ssm.report_history import loss_terms, read_history
from mode_ssm.tasks.results import TrialResult, summarise
from mode_ssm.vocab import CLASS_ID, SIL

VOID = {"meta", "br", "path", "use", "image", "rect", "circle", "line"}
PHONEMES = (CLASS_ID["Y"], CLASS_ID["EH"], CLASS_ID["S"], SIL)


def make_results(*, words: bool = True, tta: bool = False) -> list[TrialResult]:
    rng = np.random.default_rng(0)
    results = []
    for number in range(24):
        info = TrialInfo(
            session=f"t15.2023.08.{11 + number % 3}",
            split="val",
            block=2,
            trial=number,
            path="data.hdf5",
            key=f"trial_{number:04d}",
            num_bins=20 + number,
            num_phonemes=4,
            sentence="yes i am",
        )
        wrong = rng.random() < 0.4
        results.append(
            TrialResult(
                info=info,
                reference_phonemes=PHONEMES,
                reference_sentence="yes i am",
                phonemes=(PHONEMES[0], CLASS_ID["AE"], SIL) if wrong else PHONEMES,
                ctc_phonemes=PHONEMES,
                words=("<yes> i was" if wrong else "yes i am") if words else None,
                words_without_tta="yes i" if tta else None,
                phonemes_without_tta=PHONEMES if tta else None,
                corpus=("a & b", "c")[number % 2],
                mode=("silent", "vocalised")[number % 2],
                seen=number % 4 == 0,
                mode_posterior=(0.75, 0.25),
            )
        )
    return results


def make_metrics(path: Path) -> Path:
    lines: list[dict] = []
    for step in range(1, 41):
        phase = "warm_up" if step <= 25 else "joint"
        terms = {"train/ctc": 4 / step} | ({"train/rnnt": 3.0} if phase == "joint" else {})
        lines.append(
            {"kind": "train", "step": step, "phase": phase, "train/loss": sum(terms.values()), **terms}
            | {"lr": 1e-3, "seconds": float(step)}
        )
        if step in (20, 25, 40):
            lines.append({"kind": "evaluation", "step": step, "phase": phase, "val/per": 5 / step, "seconds": step})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_example(result: TrialResult) -> ExampleTrial:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(10, 41))
    return ExampleTrial(
        result=result,
        features=rng.normal(size=(20, 16)).astype(np.float32),
        log_probs=logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)),
        frame_stride=2,
        phoneme_starts=[0, 5, 10, 15],
    )


class Structure(HTMLParser):
    """Checks that tags are balanced, and keeps the text of the page outside of drawings."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "svg" not in self.open and "style" not in self.open:
            self.text.append(data)


def parse(path: Path) -> Structure:
    structure = Structure()
    structure.feed(path.read_text(encoding="utf-8"))
    structure.close()
    assert structure.open == []
    return structure


def write(folder: Path, results: list[TrialResult], **fields) -> dict:
    summary = summarise(results)
    write_report(folder, title="quickstart", summary=summary, results=results, config_yaml="seed: 0\n", **fields)
    return summary


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run")
    results = make_results(tta=True)
    summary = summarise(results)
    row = {"steps": 5, "entropy_before": 0.4, "entropy_after": 0.3, "refused": False}
    summary["adaptation"] = {name: row for name in summary["by_session"]}
    write_report(
        folder,
        title="a <run> & more",
        summary=summary,
        results=results,
        config_yaml="name: <b>&\n",
        metrics_path=make_metrics(folder / "metrics.jsonl"),
        example=make_example(choose_example(results)),
        notes=["step 40"],
    )
    return folder, summary


def test_json_is_the_summary_with_the_promised_keys(full: tuple[Path, dict]) -> None:
    folder, summary = full
    written = json.loads((folder / "report.json").read_text())
    assert written == summary
    promised = {"split", "per", "wer", "cer", "per_greedy_ctc", "per_rnnt", "by_session", "num_trials"}
    assert promised <= set(written)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html", "metrics.jsonl"}


def test_page_fetches_nothing_and_runs_nothing(full: tuple[Path, dict]) -> None:
    page = (full[0] / "report.html").read_text()
    addresses = parse(full[0] / "report.html").addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert any(address.startswith("data:") for address in addresses)
    assert "<script" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_page_has_every_section_and_its_figures(full: tuple[Path, dict]) -> None:
    text = (full[0] / "report.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Groups of trials",
        "Sessions",
        "Training, stage by stage",
        "One trial",
        "Phoneme errors",
        "Trials",
        "Configuration",
    ]
    assert text.count('<svg role="img"') == 4


def test_page_shows_the_rates_of_the_summary(full: tuple[Path, dict]) -> None:
    folder, summary = full
    text = "".join(parse(folder / "report.html").text).replace("\u00a0", " ")
    assert f"WER {100 * summary['wer_without_tta']:.1f} % without it, {100 * summary['wer']:.1f} % with it" in text
    for session, group in summary["by_session"].items():
        low, high = group["per_ci"]
        assert f"{session}8{100 * group['per']:.1f}{100 * low:.1f}–{100 * high:.1f}" in text
    assert "1 warm up250.40.16020.020.0" in text  # until step, minutes, loss, best and last PER of the stage
    assert "2 joint400.23.10012.512.5" in text


def test_text_from_outside_is_escaped(full: tuple[Path, dict]) -> None:
    page = (full[0] / "report.html").read_text()
    assert "<h1>a &lt;run&gt; &amp; more</h1>" in page
    assert "<pre>name: &lt;b&gt;&amp;\n</pre>" in page
    assert "a &amp; b" in page


def test_differences_are_marked_on_both_sides(full: tuple[Path, dict]) -> None:
    page = (full[0] / "report.html").read_text()
    assert 'yes i <mark class="missed">am</mark>' in page
    assert 'yes i <mark class="wrong">was</mark>' in page


def test_most_frequent_phoneme_errors_are_counted(full: tuple[Path, dict]) -> None:
    wrong = sum(len(result.phonemes) == 3 for result in make_results())
    page = (full[0] / "report.html").read_text()
    share = f"{100 * wrong / 24:.1f}"
    # Y EH S SIL against Y AE SIL: one substitution and one deletion, which may fall on either phoneme.
    assert re.search(rf"<td[^>]*>(EH|S)</td><td[^>]*>AE</td><td>{wrong}</td><td>{share}</td>", page)
    assert re.search(rf"<td[^>]*>(EH|S)</td><td[^>]*>nothing</td><td>{wrong}</td><td>{share}</td>", page)


def test_report_without_words_or_training_or_example_leaves_them_out(tmp_path: Path) -> None:
    summary = write(tmp_path, make_results(words=False), metrics_path=tmp_path / "metrics.jsonl")
    assert summary["wer"] is None
    text = "".join(parse(tmp_path / "report.html").text)
    assert "words not decoded" in text
    assert "Training" not in text
    assert "One trial" not in text
    assert "Y AE SIL" in text


def test_perfect_results_have_no_error_section(tmp_path: Path) -> None:
    results = [result for result in make_results() if len(result.phonemes) == 4]
    write(tmp_path, results)
    assert "Phoneme errors" not in (tmp_path / "report.html").read_text()


def test_an_example_too_short_to_align_is_shown_without_alignment(tmp_path: Path) -> None:
    results = make_results()
    example = make_example(results[0])
    short = ExampleTrial(
        result=example.result, features=example.features, log_probs=example.log_probs[:3], frame_stride=2
    )
    write(tmp_path, results, example=short)
    assert "One trial" in (tmp_path / "report.html").read_text()


def test_same_input_gives_the_same_page(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name, make_results(), example=make_example(make_results()[0]))
    assert (tmp_path / "first" / "report.html").read_bytes() == (tmp_path / "second" / "report.html").read_bytes()


def test_example_is_of_middling_length() -> None:
    assert choose_example(make_results()).info.num_bins == 31


def test_history_is_split_into_stages_and_forgives_a_cut_off_last_line(tmp_path: Path) -> None:
    path = make_metrics(tmp_path / "metrics.jsonl")
    path.write_text(path.read_text() + '{"kind": "train", "st')
    stages = read_history(path)
    assert [(s.name, s.first_step, s.last_step) for s in stages] == [("warm_up", 1, 25), ("joint", 26, 40)]
    assert [len(s.evaluations) for s in stages] == [2, 1]
    assert loss_terms(stages) == ["train/ctc", "train/rnnt"]
    assert stages[0].last("val/per") == pytest.approx(0.2)
    assert stages[0].last("train/rnnt") is None
    assert stages[0].seconds == 24


@pytest.mark.parametrize("broken", ["[1, 2]", '{"kind": "train"}', "not json"])
def test_a_broken_line_of_history_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{broken}\n{{"kind": "train", "step": 1, "phase": "joint"}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: "):
        read_history(path)


def test_table_shows_groups_and_fits_80_columns() -> None:
    console = Console(width=80, record=True, color_system=None, file=io.StringIO())
    summary = summarise(make_results(tta=True))
    print_table(summary, console)
    text = console.export_text()
    assert re.search(rf"all +24 +{100 * summary['per']:.1f} ", text)
    for name in ("seen", "unseen", "a & b", "silent", "t15.2023.08.11", "no TTA"):
        assert name in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
