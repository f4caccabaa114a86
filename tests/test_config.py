"""The schema and the files of `configs/`: what they promise each other."""

import copy
import dataclasses
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from mode_ssm import config
from mode_ssm.compose import load_train_config, validate
from mode_ssm.compose.keys import ConfigError, schema_keys
from mode_ssm.compose.overrides import group_choices
from mode_ssm.compose.validation_curriculum import CTC_MODULES, LOSS_TERMS, MODULES
from mode_ssm.compose.validation_ranges import RANGES
from mode_ssm.config import (
    OVERRIDABLE_SECTIONS,
    EvaluateConfig,
    LossNormaliser,
    LossWeights,
    LrMultipliers,
    LrSchedule,
    Mixer,
    ModelKind,
    Precision,
    SessionAdapter,
    Smoothing,
    SubmissionConfig,
    TaskName,
    TrainConfig,
)
from mode_ssm.models.mode_ssm import MODE_SSM
from mode_ssm.models.phoneme_model import PhonemeModel
from mode_ssm.models.transformer_lm import TransformerLM
from mode_ssm.tasks.transcription import build_model

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
EXPERIMENTS = group_choices()["experiment"]
TEXTS = ("text.train=[train.txt]", "text.valid=[valid.txt]")  # which nobody but the user can name
LANGUAGE_MODEL = ("experiment=lm_small", *TEXTS)
SCHEMA = [kind for _, kind in inspect.getmembers(config, inspect.isclass) if dataclasses.is_dataclass(kind)]


@cache
def composed_once(*arguments: str) -> TrainConfig:
    return load_train_config(list(arguments))


def loaded(*arguments: str) -> TrainConfig:
    return copy.deepcopy(composed_once(*arguments))


@pytest.mark.parametrize("kind", SCHEMA, ids=lambda kind: kind.__name__)
def test_schema_classes_refuse_unknown_attributes_and_can_be_composed(kind):
    assert "__slots__" in vars(kind)  # else `+model.d_modle=3` becomes an attribute that nobody reads
    assert not kind.__dataclass_params__.frozen  # a frozen root cannot be composed
    assert all(field.kw_only for field in dataclasses.fields(kind))


def test_only_the_phases_are_a_free_dictionary():
    """A dictionary swallows mistyped names; loss weights and multipliers are therefore dataclasses."""
    free = [key.path for key in schema_keys(TrainConfig).values() if str(key.type).startswith("dict")]
    assert free == ["curriculum.phases"]


def test_every_choice_is_an_enumeration():
    assert [kind.__name__ for kind in SCHEMA if "Literal" in inspect.getsource(kind)] == []


def test_every_class_of_the_schema_is_a_name_of_the_package():
    defined = set()
    for found in pkgutil.iter_modules(config.__path__, f"{config.__name__}."):
        module = importlib.import_module(found.name)
        classes = inspect.getmembers(module, inspect.isclass)
        defined |= {name for name, kind in classes if kind.__module__ == found.name}
    assert TrainConfig.__name__ in defined
    assert defined == {name for name in config.__all__ if inspect.isclass(getattr(config, name))}


def test_every_number_of_the_schema_has_a_range():
    numbers = {
        path for path, key in schema_keys(TrainConfig).items() if key.type in (int, float) and "phases" not in path
    }
    ranged = [path for paths, _, _ in RANGES for path in paths]
    assert sorted(ranged) == sorted(numbers)


def test_the_names_that_a_phase_may_use_are_those_of_the_model():
    assert MODULES[TaskName.transcription] == MODE_SSM.MODULES
    assert CTC_MODULES == PhonemeModel.MODULES
    for table, kind in ((MODULES, LrMultipliers), (LOSS_TERMS, LossWeights)):
        assert {name for names in table.values() for name in names} == {
            field.name for field in dataclasses.fields(kind)
        }
        assert set(table) == set(TaskName)


def test_sections_that_evaluation_overrides_exist_and_no_script_key_hides_one():
    assert set(OVERRIDABLE_SECTIONS) <= {field.name for field in dataclasses.fields(TrainConfig)}
    for root in (EvaluateConfig, SubmissionConfig):
        assert not {field.name for field in dataclasses.fields(root)} & set(OVERRIDABLE_SECTIONS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_a_file_names_no_code_no_optional_default_and_no_clock(file):
    text = file.read_text()
    assert "_target_" not in text  # a configuration must not name arbitrary code
    assert "optional " not in text  # a mistyped optional choice runs the defaults without a word
    assert "${now:" not in text  # two processes would resolve it differently
    assert "hydra" not in yaml.safe_load(text)


def test_an_experiment_has_the_last_word_over_the_base_file():
    defaults = yaml.safe_load((CONFIGS / "train.yaml").read_text())["defaults"]
    assert defaults[-2:] == ["_self_", {"experiment": "quickstart"}]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_names_its_run_and_builds(name):
    composed = loaded(f"experiment={name}", *TEXTS)
    assert composed.run_name == name
    assert composed.run_dir == f"runs/{name}"
    with torch.device("meta"):
        if composed.task.name is TaskName.language_model:
            model = TransformerLM(composed.language_model, num_tokens=20_000)
        else:
            model = build_model(composed, num_sessions=45, num_blocks=3)
    assert sum(parameter.numel() for parameter in model.parameters()) > 100_000


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group, choices in group_choices().items() for choice in choices if group != "experiment"],
)
def test_every_choice_of_every_group_composes(group, choice):
    base = LANGUAGE_MODEL if choice == "language_model" else ()
    if "baseline" in choice:
        base = ("curriculum=one_stage",)
    assert isinstance(loaded(f"{group}={choice}", *base), TrainConfig)


def test_the_default_experiment_is_the_quickstart():
    assert loaded() == loaded("experiment=quickstart")
    assert loaded().data.simulate.enabled


def test_the_full_recipe_is_the_published_one():
    full = loaded("experiment=t15_mode_ssm")
    model, encoder, optim = full.model, full.model.encoder, full.optim
    assert (model.d_model, encoder.d_state, encoder.n_layers, encoder.d_conv) == (512, 64, 8, 4)
    assert (encoder.headdim, encoder.mixer, model.session_adapter) == (64, Mixer.mamba2, SessionAdapter.affine)
    assert (optim.lr, optim.beta1, optim.beta2, optim.weight_decay) == (2e-4, 0.9, 0.98, 0.05)
    assert (optim.warmup_steps, optim.accumulation, full.data.batch_size, optim.clip_norm) == (5000, 4, 16, 1.0)
    assert full.parallel.precision is Precision.bf16
    assert {name: phase.epochs for name, phase in full.curriculum.phases.items()} == {
        "ctc_warmup": 10, "joint": 15, "mode": 10, "flow_bridge": 5,
    }  # fmt: skip
    augment = full.data.augment
    assert (augment.white_noise_std, augment.constant_offset_std, augment.random_cut_bins) == (1.0, 0.2, 3)
    assert (augment.time_masks, augment.time_mask_max_fraction) == (20, 0.05)


def test_every_curriculum_of_transcription_runs_the_four_phases_in_order():
    for choice in set(group_choices()["curriculum"]) - {"language_model"}:
        phases = loaded(f"curriculum={choice}").curriculum.phases
        four = ["ctc_warmup", "joint", "mode", "flow_bridge"]
        assert list(phases) == (["ctc"] if choice.startswith("one_stage") else four)


def test_the_recipe_of_the_benchmarks_gru_is_the_published_one():
    """Its `rnn_args.yaml`, and the loss of its trainer."""
    config = loaded("experiment=t15_gru_baseline")
    gru, optim, augment = config.model.gru, config.optim, config.data.augment
    assert config.model.kind is ModelKind.gru
    assert (gru.hidden, gru.n_layers, gru.patch_size, gru.patch_stride) == (768, 5, 14, 4)
    assert (gru.session_layers, gru.dropout, gru.input_dropout) == (True, 0.4, 0.2)
    assert (optim.lr, optim.beta1, optim.beta2, optim.eps, optim.weight_decay) == (0.005, 0.9, 0.999, 0.1, 0.001)
    assert (optim.warmup_steps, optim.clip_norm, optim.schedule) == (1000, 10, LrSchedule.cosine)
    assert optim.lr * optim.min_lr_ratio == pytest.approx(1e-4)
    assert (config.data.batch_size, optim.accumulation, config.data.sessions_per_batch) == (64, 1, 4)
    assert (augment.white_noise_std, augment.constant_offset_std, augment.random_cut_bins) == (1.0, 0.2, 3)
    assert (config.data.smoothing, config.data.smoothing_std, augment.time_masks) == (Smoothing.symmetric, 2.0, 0)
    (phase,) = config.curriculum.phases.values()
    assert (phase.steps, phase.normaliser) == (120_000, LossNormaliser.trials)


def test_the_recipe_of_the_time_masked_transformer_is_the_published_one():
    config = loaded("experiment=t15_transformer_baseline")
    transformer, optim, augment = config.model.transformer, config.optim, config.data.augment
    assert config.model.kind is ModelKind.transformer
    assert (transformer.patch_size, transformer.d_model, transformer.n_layers) == (4, 384, 5)
    assert (transformer.n_heads, transformer.head_dim, transformer.mlp_ratio, transformer.max_distance) == (
        6,
        64,
        4,
        200,
    )
    assert (transformer.session_layers, transformer.dropout, transformer.input_dropout) == (False, 0.35, 0.2)
    assert (transformer.time_masks, transformer.time_mask_max_fraction) == (20, 0.05)
    assert (optim.lr, optim.beta1, optim.beta2, optim.eps, optim.weight_decay) == (0.002, 0.9, 0.999, 1e-8, 1e-5)
    assert (optim.schedule, optim.step_at, optim.min_lr_ratio) == (LrSchedule.step, 300 / 500, 0.1)
    assert (optim.warmup_steps, optim.clip_norm, config.data.batch_size, optim.accumulation) == (0, 100, 64, 1)
    assert (augment.white_noise_std, augment.constant_offset_std, augment.random_cut_bins) == (0.2, 0.05, 0)
    assert augment.time_masks == 0  # the model's own
    (phase,) = config.curriculum.phases.values()
    assert (phase.epochs, phase.normaliser) == (500, LossNormaliser.phonemes)


def test_rivals_on_simulated_data_see_the_same_batches_for_as_many_epochs():
    ours = loaded("experiment=sim_mode_ssm")
    epochs = sum(phase.epochs for phase in ours.curriculum.phases.values())
    for name in ("sim_gru_baseline", "sim_transformer_baseline"):
        rival = loaded(f"experiment={name}")
        (phase,) = rival.curriculum.phases.values()
        assert phase.epochs == epochs
        rival.data.augment = ours.data.augment
        assert rival.data == ours.data
        assert (rival.decode, rival.lm, rival.optim.accumulation) == (ours.decode, ours.lm, ours.optim.accumulation)
    assert not ours.model.encoder.bidirectional  # as causal as its rivals


def test_the_smoke_run_differs_from_the_full_recipe_in_length_only():
    full, smoke = loaded("experiment=t15_mode_ssm"), loaded("experiment=t15_mode_ssm_smoke")
    assert [phase.steps for phase in smoke.curriculum.phases.values()] == [1, 1, 1, 1]
    for phase in smoke.curriculum.phases.values():
        phase.steps = None
    for name, phase in full.curriculum.phases.items():
        smoke.curriculum.phases[name].epochs = phase.epochs
        smoke.curriculum.phases[name].evaluate_every_epochs = phase.evaluate_every_epochs
    smoke.run_name, smoke.run_dir = full.run_name, full.run_dir
    assert smoke == full


def test_the_shuffled_control_differs_from_the_quickstart_in_labels_only():
    quickstart, control = loaded(), loaded("experiment=simulated_shuffled")
    assert control.data.shuffle_labels
    control.data.shuffle_labels = False
    control.run_name, control.run_dir = quickstart.run_name, quickstart.run_dir
    assert control == quickstart


def test_spoken_digits_is_log_mel_without_simulation_or_smoothing():
    digits = loaded("experiment=spoken_digits")
    assert (digits.data.feature_dim, digits.data.root) == (80, "data/spoken_digits")
    assert not digits.data.simulate.enabled
    assert digits.data.smoothing is Smoothing.none


def test_the_group_on_the_command_line_wins_over_the_experiment():
    assert loaded("model=mode_ssm").model.d_model == 512
    assert loaded("parallel=cpu", "experiment=t15_mode_ssm").parallel.precision is Precision.fp32


def test_run_directories_are_the_same_in_two_processes():
    program = "from mode_ssm.compose import load_train_config as load; print(load(['run_name=twice']).run_dir)"
    outputs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert [output.stdout for output in outputs] == ["runs/twice\n", "runs/twice\n"]


def test_composing_leaves_the_working_directory_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded("experiment=t15_mode_ssm")
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_survives_the_way_through_a_file(tmp_path):
    original = loaded("experiment=spoken_digits", "data.train_sessions=[a,b]")
    OmegaConf.save(OmegaConf.structured(original), tmp_path / "config.yaml")
    merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(tmp_path / "config.yaml"))
    assert OmegaConf.to_object(merged) == original


# The values that messages below quote, whatever the experiments are tuned to.
SETTLED = [
    "data.batch_size=16", "data.sessions_per_batch=4", "data.smoothing=symmetric", "model.d_model=128",
    "model.encoder.expand=2", "model.encoder.mixer=mamba2", "model.encoder.dt_max=0.1", "model.stem.stride=4",
    "curriculum.phases.joint.epochs=15", "curriculum.phases.joint.evaluate_every_epochs=null",
    "decode.beam_size=100", "adapt.steps=5",
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.encoder.headdim=48"], "model.encoder.headdim=48: must divide d_model x expand = 256; "
         "for example 8, 16, 32, 64, 128, 256"),
        (["model.stem.kernel_size=3"], "model.stem.kernel_size=3: expected at least model.stem.stride=4, "
         "or bins between two frames would be seen by none"),
        (["model.encoder.n_layers=0"], "model.encoder.n_layers=0: expected at least 1"),
        (["optim.lr=0"], "optim.lr=0.0: expected above 0"),
        (["optim.lr=nan"], "optim.lr=nan: expected above 0"),
        (["optim.weight_decay=-1"], "optim.weight_decay=-1.0: expected 0 or above"),
        (["model.encoder.dropout=1.0"], "model.encoder.dropout=1.0: expected from 0 to below 1"),
        (["data.augment.time_mask_max_fraction=1.5"], "data.augment.time_mask_max_fraction=1.5: expected from 0 to 1"),
        (["data.augment.static_gain=1"], "data.augment.static_gain=1.0: expected from 0 to below 1"),
        (
            ["data.augment.array_dropout=0.1", "data.feature_dim=80"],
            "data.augment.array_dropout=0.1: needs arrays of 64 electrodes with two features each, and "
            "data.feature_dim=80 is no multiple of 128; set it to 0",
        ),
        (
            ["model.stem.mask_token=true", "data.augment.time_masks=0"],
            "model.stem.mask_token=true: is learned where data.augment.time_masks leaves zeros; set that above 0",
        ),
        (["data.rolling_seconds=0"], "data.rolling_seconds=0.0: expected above 0"),
        (["model.encoder.dt_min=0.5"], "model.encoder.dt_min=0.5: expected at most model.encoder.dt_max=0.1"),
        (["data.sessions_per_batch=17"], "data.sessions_per_batch=17: expected at most data.batch_size=16, "
         "because a batch cannot mix more sessions than it has trials"),
        (["data.smoothing_std=0"],
         "data.smoothing_std=0: symmetric smoothing needs a width; or set data.smoothing=none"),
        (["data.train_sessions=[]"], "data.train_sessions=[]: expected at least one session, or null for all"),
        (["parallel.device=gpu"], "parallel.device=gpu: expected auto, cpu, cuda or cuda:<number>"),
        (["checkpoint.metric=per"], "checkpoint.metric=per: expected one of val/per_mean, val/per, val/per_rnnt, "
         "or null for the task's choice"),
        (["checkpoint.higher_is_better=true"],
         "checkpoint.higher_is_better=true: val/per_mean is better when lower; set it to false"),
        (["run_name=a/b"], "run_name=a/b: expected a folder name of letters, digits and _ - ."),
        (["resume=true", "overwrite=true"],
         "resume=true and overwrite=true exclude each other: continue the run, or start it afresh"),
        (["curriculum.phases.joint.steps=5"],
         "curriculum.phases.joint: epochs=15.0 steps=5: give exactly one, the other is null"),
        (["curriculum.phases.joint.epochs=null"],
         "curriculum.phases.joint: epochs=null steps=null: give exactly one, the other is null"),
        (["curriculum.phases.joint.patience=2"], "curriculum.phases.joint.patience=2: counts evaluations; "
         "set curriculum.phases.joint.evaluate_every_epochs too"),
        (["curriculum.phases.joint.train=[]"], "curriculum.phases.joint.train=[]: expected at least one of "
         "preprocessor, encoder, mode_head, denoiser, ctc_head, predictor, joiner"),
        (["curriculum.phases.joint.train=[encoder,jointer]"], "curriculum.phases.joint.train: unknown module "
         "'jointer'; known: preprocessor, encoder, mode_head, denoiser, ctc_head, predictor, joiner"),
        (["curriculum.phases.joint.train=[encoder,encoder]"],
         "curriculum.phases.joint.train: 'encoder' stands there twice"),
        (["curriculum.phases.joint.loss={ctc: 0, rnnt: 0, mode_information: 0, mode_block: 0, flow: 0}"],
         "curriculum.phases.joint.loss: every weight is 0; "
         "give one to at least one of ctc, rnnt, mode_information, mode_block, flow"),
        (["curriculum.phases.joint.loss.ctc=-1"], "curriculum.phases.joint.loss.ctc=-1.0: expected 0 or above"),
        (["curriculum.phases.joint.lr_multipliers.encoder=0"], "curriculum.phases.joint.lr_multipliers.encoder=0.0: "
         "expected above 0; leave it out of train to freeze it"),
        (["curriculum.phases.joint.epochs=0"], "curriculum.phases.joint.epochs=0.0: expected above 0, or null"),
        (["decode.nbest=101"], "decode.nbest=101: expected at most decode.beam_size=100, "
         "because a beam ends with no more hypotheses than it holds"),
        (["adapt.ctc_weight=0", "adapt.rnnt_weight=0"], "adapt.steps=5: nothing to minimise; "
         "give adapt.ctc_weight or adapt.rnnt_weight, or 0 steps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_named_with_what_would(arguments, message):
    quickstart = OmegaConf.structured(loaded())
    config = OmegaConf.to_object(OmegaConf.merge(quickstart, OmegaConf.from_dotlist([*SETTLED, *arguments])))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        validate(config)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["text.train=[]"],
         ["text.train=[]: give text files, one sentence a line, such as text.train=[conversation.txt,read.txt]"]),
        (["text.valid=[]"],
         ["text.valid=[]: give text files, one sentence a line, such as text.valid=[held_out.txt]"]),
        (["language_model.n_heads=3"],
         ["language_model.n_heads=3: must divide language_model.d_model=256 into heads of even width"]),
        (["checkpoint.metric=val/per"],
         ["checkpoint.metric=val/per: expected one of val/perplexity, or null for the task's choice"]),
        (["curriculum.phases.next_word.train=[encoder]"],
         ["curriculum.phases.next_word.train: unknown module 'encoder'; known: language_model"]),
        (["curriculum.phases.next_word.loss.ctc=1"],
         ["curriculum.phases.next_word.loss.ctc=1.0: task=language_model has no such term; expected 0"]),
    ],
)  # fmt: skip
def test_a_language_model_is_checked_as_such(arguments, messages):
    composed = OmegaConf.structured(loaded(*LANGUAGE_MODEL))
    with pytest.raises(ValueError, match=re.escape(messages[0])) as error:
        validate(OmegaConf.to_object(OmegaConf.merge(composed, OmegaConf.from_dotlist(arguments))))
    assert str(error.value).splitlines() == messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curriculum=four_stage"], "model.kind=gru: its parts are preprocessor, encoder, ctc_head, and the curriculum "
         "trains others; choose one for it, e.g. curriculum=one_stage"),
        (["curriculum.phases.ctc.loss.rnnt=1"],
         "curriculum.phases.ctc.loss.rnnt=1.0: model.kind=gru has no such term; expected 0"),
        (["checkpoint.metric=val/per_rnnt"],
         "checkpoint.metric=val/per_rnnt: expected one of val/per, or null for the task's choice"),
        (["adapt.ctc_weight=0"], "adapt.steps=5: nothing to minimise; give adapt.ctc_weight, or 0 steps"),
    ],
)  # fmt: skip
def test_a_model_with_a_ctc_head_alone_is_checked_as_such(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_train_config(["experiment=sim_gru_baseline", *arguments])
    assert str(error.value) == message


def test_all_issues_arrive_in_one_error():
    with pytest.raises(ValueError, match="does not make sense") as error:
        load_train_config(["model.encoder.n_layers=0", "optim.lr=-1", "data.batch_size=0"])
    assert str(error.value).splitlines() == [
        "the configuration does not make sense:",
        "  data.batch_size=0: expected at least 1",
        "  model.encoder.n_layers=0: expected at least 1",
        "  optim.lr=-1.0: expected above 0",
    ]
    assert not isinstance(error.value, ConfigError)


def test_a_curriculum_without_phases_is_refused():
    config = loaded()
    config.curriculum.phases.clear()
    with pytest.raises(ValueError, match="expected at least one phase; choose a curriculum"):
        validate(config)
