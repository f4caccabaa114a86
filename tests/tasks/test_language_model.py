"""The language-model task: its objective against its definition, its perplexity, training and continuing it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_ssm.config import (
    CheckpointConfig,
    CurriculumConfig,
    DataConfig,
    LanguageModelConfig,
    LoggingConfig,
    LossWeights,
    OptimConfig,
    ParallelConfig,
    PhaseConfig,
    TaskConfig,
    TaskName,
    TextConfig,
    TrainConfig,
)
from mode_ssm.inference_text import load_neural_scorer, report_on_text
from mode_ssm.lm.neural_scorer import NeuralScorer
from mode_ssm.lm.ngram import NGramLM
from mode_ssm.lm.text_file import read_texts
from mode_ssm.tasks.choice import build_task, prepare_data
from mode_ssm.tasks.language_model import LanguageModelTask
from mode_ssm.tasks.sharding import Ranks
from mode_ssm.tasks.text_evaluation import text_perplexity
from mode_ssm.train.checkpoint import load_checkpoint
from mode_ssm.train.distributed import Distributed
from mode_ssm.train.trainer import Trainer

CPU = torch.device("cpu")
SINGLE = Distributed(rank=0, world_size=1, device=CPU)
VALID = "the cat runs home\nA dog sleeps!\nthe unicorn sleeps at home\n"


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Twelve words in sentences of one grammar, each said a few times, and a tiny model."""
    rng = np.random.default_rng(0)
    names, verbs = ["cat", "dog", "bird", "child"], ["runs", "sleeps", "sings"]
    lines = []
    for _ in range(120):
        tail = rng.choice(["", " at home", " home", " now"])
        lines.append(f"{rng.choice(['the', 'a'])} {rng.choice(names)} {rng.choice(verbs)}{tail}")
    (tmp_path / "train.txt").write_text("\n".join([*lines, "an odd one"]))
    (tmp_path / "valid.txt").write_text(VALID)
    phase = PhaseConfig(
        epochs=3, train=["language_model"], loss=LossWeights(cross_entropy=1.0), evaluate_every_epochs=1
    )
    return TrainConfig(
        run_dir=str(tmp_path / "run"),
        task=TaskConfig(name=TaskName.language_model),
        data=DataConfig(root=str(tmp_path / "no_recordings")),
        language_model=LanguageModelConfig(
            vocabulary_size=50, frequent_tokens=40, d_model=16, n_layers=1, n_heads=2, d_hidden=32
        ),
        text=TextConfig(train=[str(tmp_path / "train.txt")], valid=[str(tmp_path / "valid.txt")], tokens_per_batch=60),
        optim=OptimConfig(lr=1e-2, warmup_steps=3),
        curriculum=CurriculumConfig(phases={"next_word": phase}),
        parallel=ParallelConfig(device="cpu", threads=1),
        checkpoint=CheckpointConfig(every_steps=5),
        logging=LoggingConfig(progress=False, tensorboard=False),
    )


@pytest.fixture
def task(config: TrainConfig) -> LanguageModelTask:
    task = LanguageModelTask(config, CPU, progress=False)
    task.setup()
    task.model.eval()
    return task


def test_the_loss_is_minus_the_log_probability_of_the_sentences(task: LanguageModelTask, config: TrainConfig) -> None:
    phase = config.curriculum.phases["next_word"]
    objective, scorer = task.objective(phase), NeuralScorer(task.model, task.tokens)
    objective.eval()
    loader = task.train_loader(phase, 0, 1)
    total = 0.0
    for batch in loader.epoch(0):
        ((name, (loss, count)),) = objective(batch).items()
        assert objective.counts(batch) == {name: float(count)}
        total += loss.item()
    sentences = [sentence.split() for sentence in read_texts(config.text.train)]
    assert total == pytest.approx(-scorer.sentence_log_probs(sentences).sum(), rel=1e-5)
    assert task.loss_weights(phase) == {"cross_entropy": 1.0}


def test_perplexity_is_per_word_and_counts_the_ends_of_sentences(task: LanguageModelTask) -> None:
    sentences = [["the", "cat", "runs", "home"], ["a", "dog", "sleeps"], ["the", "unicorn", "sleeps", "at", "home"]]
    total = NeuralScorer(task.model, task.tokens).sentence_log_probs(sentences).sum()
    assert task.evaluate(SINGLE) == {"val/perplexity": pytest.approx(math.exp(-total / (12 + 3)), rel=1e-5)}


def test_beside_an_ngram_model_only_the_words_that_it_knows_count(task: LanguageModelTask, config: TrainConfig) -> None:
    baseline = NGramLM.estimate(read_texts(config.text.train), 3)
    found = text_perplexity(task.model, task.tokens, config.text.valid[0], baseline, CPU, 20)
    scorer, total = NeuralScorer(task.model, task.tokens), 0.0
    for sentence in read_texts(config.text.valid):
        state = scorer.start()
        for word in sentence.split():
            log_probs, (state,) = scorer.advance([state], [word])
            total += log_probs[0] if word != "unicorn" else 0.0
        total += scorer.end([state])[0]
    assert found.perplexity_known == pytest.approx(math.exp(-total / (11 + 3)), rel=1e-5)
    assert found.ngram_perplexity == baseline.perplexity(read_texts(config.text.valid)).perplexity
    assert (found.text, found.num_sentences, found.num_words, found.num_unknown) == ("valid.txt", 3, 12, 1)
    assert found.perplexity == pytest.approx(task.evaluate(SINGLE)["val/perplexity"], rel=1e-5)
    assert found.reduction == 1 - found.perplexity_known / found.ngram_perplexity


def test_the_trainer_trains_it_and_its_checkpoint_scores_words_without_the_text(config: TrainConfig) -> None:
    prepare_data(config)  # needs no recordings
    task = build_task(config, CPU, progress=False)
    result = Trainer(config, task, SINGLE, Path(config.run_dir)).fit()
    lines = map(json.loads, (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines())
    perplexities = [line["val/perplexity"] for line in lines if line["kind"] == "evaluation"]
    assert len(perplexities) == 3
    assert perplexities[1] < 0.8 * perplexities[0]
    assert result.best_metrics == {"val/perplexity": min(perplexities)}
    Path(config.text.train[0]).unlink()
    scorer = load_neural_scorer(config.run_dir)
    sentences = [sentence.split() for sentence in read_texts(config.text.valid)]
    total = scorer.sentence_log_probs(sentences).sum()
    assert math.exp(-total / 15) == pytest.approx(result.best_metrics["val/perplexity"], rel=1e-4)


def test_a_run_that_was_interrupted_continues_to_the_bit(config: TrainConfig, tmp_path: Path) -> None:
    class PowerCutError(Exception):
        pass

    class Failing(LanguageModelTask):
        def evaluate(self, ranks: Ranks) -> dict[str, float]:
            if self.calls:
                raise PowerCutError
            self.calls = 1
            return super().evaluate(ranks)

    whole = Trainer(config, build_task(config, CPU, progress=False), SINGLE, tmp_path / "whole").fit()
    failing = Failing(config, CPU, progress=False)
    failing.calls = 0
    with pytest.raises(PowerCutError):
        Trainer(config, failing, SINGLE, tmp_path / "cut").fit()
    again = replace(config, resume=True)
    resumed = Trainer(again, build_task(again, CPU, progress=False), SINGLE, tmp_path / "cut").fit()
    assert resumed.best_metrics == whole.best_metrics
    ends = [load_checkpoint(result.last_checkpoint).weights() for result in (whole, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_report_holds_every_text_beside_the_ngram_model(config: TrainConfig, tmp_path: Path) -> None:
    Trainer(config, build_task(config, CPU, progress=False), SINGLE, Path(config.run_dir)).fit()
    summary = report_on_text(load_checkpoint(config.run_dir), config, CPU, tmp_path / "report")
    (row,) = summary["texts"]
    assert row["text"] == "valid.txt"
    assert (tmp_path / "report" / "report.json").is_file()
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"{row['ngram_perplexity']:.1f}" in page
    assert "validation perplexity of a word" in page


def test_a_text_without_a_sentence_is_named(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n123\n")
    config.text.valid = [str(tmp_path / "empty.txt")]
    with pytest.raises(ValueError, match=r"empty\.txt: no sentences; expected one a line$"):
        LanguageModelTask(config, CPU, progress=False).setup()


def test_texts_are_read_one_after_the_other_and_normalised(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Don’t stop!\n\n  42 \nTwo  words\n", encoding="utf-8")
    assert list(read_texts([path, path])) == 2 * ["don't stop", "two words"]
