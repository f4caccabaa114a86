"""The way from the command line to a configuration: what it gives, and the one line that a mistake ends in."""

import re
import shutil
from pathlib import Path

import pytest

from mode_ssm.compose import (
    ConfigError,
    apply_overrides,
    load_evaluate_config,
    load_submission_config,
    load_train_config,
    overrides,
)
from mode_ssm.config import EvaluateConfig, OnBadTrial, SubmissionConfig

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS, MODELS = (
    ", ".join(sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml")))
    for group in ("experiment", "model")
)
D_MODELS = "'model.d_model' or 'model.transformer.d_model' or 'language_model.d_model'"
PHASES = "ctc_warmup, joint, mode, flow_bridge"
QUOTE = "; write key=value, or \"key='value'\" with special characters"
NO_SECTION = (
    "the model and its training come from the checkpoint; "
    "sections that can be overridden: data, text, lm, decode, adapt, parallel, logging"
)


def refusal(load, *arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(list(arguments))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """A copy of configs/ that a test may break; composition reads it."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(overrides, "PACKAGE", tmp_path / "mode_ssm")
    return tmp_path / "configs"


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.d_modle=3", "unknown key 'model.d_modle'; did you mean 'model.d_model'?"),
        ("modle.d_model=3", f"unknown key 'modle.d_model'; did you mean {D_MODELS}?"),
        ("model.encoder.layers=3", "unknown key 'model.encoder.layers'; did you mean 'model.encoder.n_layers'?"),
        ("d_model=3", f"unknown key or group 'd_model'; did you mean {D_MODELS}?"),
        ("lr=3", "unknown key or group 'lr'; did you mean 'optim.lr' or 'adapt.lr'?"),
        ("optims=x", "unknown key or group 'optims'; did you mean 'optim'?"),
        ("optim.lr.x=3", "unknown key 'optim.lr.x'; did you mean 'optim.lr'?"),
        ("model.encoder={n_layer:2}", "unknown key 'model.encoder.n_layer'; did you mean 'model.encoder.n_layers'?"),
        (
            "curriculum.phases.joint.epoch=3",
            "unknown key 'curriculum.phases.joint.epoch'; did you mean 'curriculum.phases.joint.epochs'?",
        ),
        (
            "curriculum.phases.joint.loss.rntt=1",
            "unknown key 'curriculum.phases.joint.loss.rntt'; did you mean 'curriculum.phases.joint.loss.rnnt'?",
        ),
        (
            "curriculum.phases.jiont.epochs=3",
            f"unknown phase 'jiont'; did you mean 'joint'? phases here: {PHASES}; "
            "a new phase needs a file in configs/curriculum",
        ),
        (
            "model._target_=os.system",
            "unknown key 'model._target_'; model has d_model, denoiser, encoder, gru, heads, kind, mode, "
            "session_adapter, session_dropout, stem, transformer",
        ),
    ],
)
def test_a_mistyped_key_names_the_nearest(plus, setting, message):
    assert refusal(load_train_config, plus + setting) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "experiment=quickstrat",
            f"unknown experiment 'quickstrat'; did you mean 'quickstart'? choices: {EXPERIMENTS}",
        ),
        ("experiment=zzz", f"unknown experiment 'zzz'; choices: {EXPERIMENTS}"),
        ("parallel=cudo", "unknown parallel 'cudo'; did you mean 'cuda'? choices: auto, bf16, cpu, cuda"),
        ("task=null", "'task=null': 'task' cannot be left out; choices: language_model, transcription"),
        ("~task", "'~task': 'task' cannot be left out; choices: language_model, transcription"),
        (
            "task={name:x}",
            "'task={name:x}': 'task' takes one of language_model, transcription; set keys as task.key=value",
        ),
    ],
)
def test_an_unknown_choice_names_the_nearest_and_the_others(setting, message):
    assert refusal(load_train_config, setting) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
        ("optim.lr=null", "optim.lr=null: expected a number"),
        ("model.encoder.n_layers=2.5", "model.encoder.n_layers=2.5: expected a whole number"),
        ("model.encoder={n_layers:2.5}", "model.encoder.n_layers=2.5: expected a whole number"),
        ("model.encoder.n_layers=true", "model.encoder.n_layers=true: expected a whole number"),
        ("data.on_bad_trial=stpo", "data.on_bad_trial=stpo: expected one of stop, skip; did you mean 'stop'?"),
        ("data.on_bad_trial=1", "data.on_bad_trial=1: expected one of stop, skip"),
        ("resume=maybe", "resume=maybe: expected true or false"),
        ("lm.texts=a", "lm.texts=a: expected a list of texts, [a,b]"),
        ("data.train_sessions=a", "data.train_sessions=a: expected a list of texts, [a,b] or null"),
        ("logging=3", "logging=3: expected a section (progress, tensorboard, every_steps)"),
    ],
)
def test_a_value_of_the_wrong_type_names_what_is_expected(setting, message):
    assert refusal(load_train_config, setting) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.d_model"], "cannot read 'model.d_model': no '='; write key=value"),
        (["=3"], "cannot read '=3': no key before '='; write key=value"),
        (["model.d_model==3"], "cannot read 'model.d_model==3': extraneous input '='" + QUOTE),
        (["lm.texts=[a"], "cannot read 'lm.texts=[a': no viable alternative at input '[a'" + QUOTE),
        (["model@x=a"], "cannot read 'model@x=a': '@' has no meaning here; write group=choice or key=value"),
        (["seed=1", "seed=2"], "'seed' is given twice; give it once"),
        (["lm=bigram", "lm=trigram"], "'lm' is given twice; give it once"),
        (["hydra.run.dir=x"], "'hydra.run.dir': Hydra's own settings have no effect; the run directory is run_dir"),
        (
            ["--seed=1"],
            "unknown option '--seed=1'; options are --help, --cfg job and --multirun, settings are key=value",
        ),
        (["--cfg"], "--cfg takes one value: --cfg job"),
        (
            ["seed=1,2"],
            "'seed=1,2' is a sweep, which needs train.py --multirun; a text with commas is quoted, "
            "a list is written [a,b]",
        ),
        (["~seed"], "'~seed': a key of the schema cannot be deleted; set it to another value"),
        (
            ["~curriculum.phases.jiont"],
            f"unknown phase 'jiont'; did you mean 'joint'? phases here: {PHASES}; "
            "a new phase needs a file in configs/curriculum",
        ),
        (["data.root=???"], "missing value for 'data.root' (the folder that holds one folder a session); "
         "give data.root=..."),
        (["run_dir=x/${run_nmae}"],
         "${run_nmae} refers to nothing: unknown key or group 'run_nmae'; did you mean 'run_name'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(arguments, message):
    assert refusal(load_train_config, *arguments) == message


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("experiment/mine", "# @package _global_\nmodel: {encoder: {d_stat: 3}}\n",
         "configs/experiment/mine.yaml: unknown key 'model.encoder.d_stat'; did you mean 'model.encoder.d_state'?"),
        ("experiment/mine", "# @package _global_\noptim: {lr: fast}\n",
         "configs/experiment/mine.yaml: optim.lr=fast: expected a number"),
        ("experiment/mine", "# @package _global_\ndata: {on_bad_trial: stpo}\n",
         "configs/experiment/mine.yaml: data.on_bad_trial=stpo: expected one of stop, skip; did you mean 'stop'?"),
        ("experiment/mine", "# @package _global_\ndefaults:\n  - override /model: mode_ssn\n",
         "configs/experiment/mine.yaml: unknown model 'mode_ssn'; did you mean 'mode_ssm'? "
         f"choices: {MODELS}"),
        ("experiment/mine", "# @package _global_\ndefaults:\n  - override /modle: mode_ssm\n",
         "configs/experiment/mine.yaml: unknown group 'modle'; did you mean 'model'?"),
        ("experiment/mine", "# @package _global_\ndefaults:\n  - quickstrat\n",
         "configs/experiment/mine.yaml: unknown experiment 'quickstrat'; did you mean 'quickstart'? "
         f"choices: {EXPERIMENTS.replace('quickstart', 'mine, quickstart')}"),
        ("experiment/mine", "# @package _global_\nseed: [1\n",
         "configs/experiment/mine.yaml:3: malformed YAML: expected ',' or ']', but got '<stream end>'"),
        ("experiment/mine", "# @package _global_\nseed: 1\nseed: 2\n",
         "configs/experiment/mine.yaml:3: malformed YAML: found duplicate key seed"),
        ("experiment/mine", "# @package _global_\nmodel: {_target_: os.system}\n",
         "configs/experiment/mine.yaml: unknown key 'model._target_'; model has d_model, denoiser, encoder, gru, "
         "heads, kind, mode, session_adapter, session_dropout, stem, transformer"),
        ("optim/mine", "learning_rate: 1\n",
         "configs/optim/mine.yaml: unknown key 'optim.learning_rate'; optim has accumulation, beta1, beta2, "
         "clip_norm, eps, lr, min_lr_ratio, schedule, schedule_scope, step_at, warmup_steps, weight_decay"),
        ("model/mine", "defaults: [mode_ssm_smal, _self_]\n",
         "configs/model/mine.yaml: unknown model 'mode_ssm_smal'; did you mean 'mode_ssm_small'? "
         f"choices: {MODELS.replace('mode_ssm,', 'mine, mode_ssm,')}"),
        ("curriculum/mine", "phases: {extra: {epochs: 1, trian: [encoder]}}\n",
         "configs/curriculum/mine.yaml: unknown key 'curriculum.phases.extra.trian'; "
         "did you mean 'curriculum.phases.extra.train'?"),
        ("curriculum/mine", "phases: {extra: {epochs: 1, loss: {ctc: 1}}}\n",
         "missing value for 'curriculum.phases.extra.train' (modules whose parameters move; all others are frozen); "
         "give curriculum.phases.extra.train=..."),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_names_the_file(configs, file, text, message):
    (configs / f"{file}.yaml").write_text(text)
    group, choice = file.split("/")
    assert refusal(load_train_config, f"{group}={choice}") == message


def test_an_override_reaches_its_key():
    config = load_train_config(
        ["seed=7", "++data.on_bad_trial=skip", "model.encoder={n_layers:2}", "curriculum.phases.joint.epochs=0.5",
         "data.train_sessions=[a,b]", "optim=adamw", "optim.lr=1e-3"]
    )  # fmt: skip
    assert (config.seed, config.data.on_bad_trial, config.model.encoder.n_layers) == (7, OnBadTrial.skip, 2)
    assert config.curriculum.phases["joint"].epochs == 0.5
    assert config.data.train_sessions == ["a", "b"]
    assert (config.optim.lr, config.optim.warmup_steps) == (1e-3, 5000)


def test_a_quoted_value_may_hold_special_characters():
    config, _ = load_evaluate_config(["checkpoint='runs/a=b, c/best'"])
    assert config.checkpoint == "runs/a=b, c/best"


def test_a_phase_can_be_left_out():
    config = load_train_config(["~curriculum.phases.mode"])
    assert list(config.curriculum.phases) == ["ctc_warmup", "joint", "flow_bridge"]


@pytest.mark.parametrize("argument", ["~experiment", "experiment=null"])
def test_without_an_experiment_the_base_is_composed(argument):
    config = load_train_config([argument])
    assert (config.run_name, config.data.root, config.model.d_model) == ("unnamed", "data/t15", 512)


@pytest.mark.parametrize(
    ("load", "kind"), [(load_evaluate_config, EvaluateConfig), (load_submission_config, SubmissionConfig)]
)
def test_scripts_over_a_checkpoint_part_their_own_keys_from_those_of_its_sections(load, kind):
    config, sections = load(["checkpoint=runs/x/best", "tta=true", "decode.beam_size=300", "lm=bigram"])
    assert isinstance(config, kind)
    assert (config.checkpoint, config.tta) == ("runs/x/best", True)
    assert sections == ["decode.beam_size=300", "lm=bigram"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tta=true"], "missing value for 'checkpoint'; give checkpoint=..."),
        (["checkpont=x"], "unknown key or group 'checkpont'; did you mean 'checkpoint'?"),
        (["checkpoint=x", "tta=yess"], "tta=yess: expected true or false"),
        (["checkpoint=x", "decode.beam_siz=3"], "unknown key 'decode.beam_siz'; did you mean 'decode.beam_size'?"),
        (["checkpoint=x", "decode.beam_size=wide"], "decode.beam_size=wide: expected a whole number"),
        (["checkpoint=x", "lm=bigrm"], "unknown lm 'bigrm'; did you mean 'bigram'? choices: bigram, trigram"),
        (["checkpoint=x", "model.d_model=3"], f"'model.d_model=3': {NO_SECTION}"),
        (["checkpoint=x", "experiment=quickstart"], f"'experiment=quickstart': {NO_SECTION}"),
        (["checkpoint=x", "seed=3"], f"'seed=3': {NO_SECTION}"),
        (["checkpoint=x", "-m"], "--multirun is for train.py; run this script once for every setting"),
    ],
)
@pytest.mark.parametrize("load", [load_evaluate_config, load_submission_config])
def test_scripts_over_a_checkpoint_refuse_in_one_line(load, arguments, message):
    assert refusal(load, *arguments) == message


def test_only_existing_splits_are_evaluated():
    with pytest.raises(ValueError, match=r"^split=valid: expected one of train, val, test$"):
        load_evaluate_config(["checkpoint=x", "split=valid"])


def test_sections_are_merged_over_the_configuration_of_a_checkpoint():
    trained = load_train_config(["decode.word_bonus=0.7", "lm.order=4"])
    config = apply_overrides(trained, ["decode.beam_size=300", "lm=bigram", "data.root=elsewhere", "adapt=statistics"])
    assert (config.decode.beam_size, config.decode.word_bonus) == (300, 0.7)
    assert (config.lm.order, config.adapt.steps, config.data.root) == (2, 0, "elsewhere")
    assert (config.model, config.optim, config.curriculum) == (trained.model, trained.optim, trained.curriculum)
    assert (trained.lm.order, trained.decode.beam_size) == (4, load_train_config([]).decode.beam_size)
    assert apply_overrides(trained, []) == trained


def test_a_key_has_the_last_word_over_the_choice_of_its_group():
    trained = load_train_config([])
    assert apply_overrides(trained, ["adapt.steps=9", "adapt=statistics"]).adapt.steps == 9


def test_a_checkpoint_keeps_its_model():
    trained = load_train_config([])
    with pytest.raises(ConfigError, match=re.escape(f"'optim.lr=1': {NO_SECTION}")):
        apply_overrides(trained, ["optim.lr=1"])
    with pytest.raises(ValueError, match=r"^lm\.order=0: expected at least 1$"):
        apply_overrides(trained, ["lm.order=0"])


def test_the_composed_configuration_can_be_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        load_train_config(["--cfg", "job", "seed=11"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "run_name: quickstart\nrun_dir: runs/quickstart\nseed: 11\n" in printed


def test_the_help_of_training_lists_choices_keys_values_meanings_and_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        load_train_config(["--help", "seed=11"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert re.search(r"experiment +lm_small  quickstart\*  sim_gru_baseline", printed)
    assert "\n  seed=11\n" in printed
    assert re.search(r"data\.on_bad_trial=stop +one of stop, skip\n", printed)
    assert re.search(r"lm\.texts=\[\] +further text files, one sentence a line", printed)
    assert re.search(r"curriculum\.phases\.<phase>\.steps=null", printed)
    assert "uv run train.py experiment=t15_mode_ssm" in printed


def test_the_help_of_evaluation_lists_its_keys_and_the_sections_of_a_checkpoint(capsys):
    with pytest.raises(SystemExit):
        load_evaluate_config(["-h"])
    printed = capsys.readouterr().out
    assert "checkpoint=???" in printed
    assert "decode.beam_size=" in printed
    assert "model.d_model" not in printed
