"""Turn a checkpoint of the benchmark's own GRU training into one of ours, to evaluate, adapt and compare it here.

    uv run scripts/import_gru_checkpoint.py trained_models/baseline_rnn/checkpoint --root data/t15
    uv run evaluate_model.py checkpoint=runs/official_gru/best

The folder holds `args.yaml` and `best_checkpoint` as that training leaves them. Nothing in a pickle is run.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from mode_ssm.compose import load_train_config, run_main
from mode_ssm.config import Smoothing, TrainConfig
from mode_ssm.models.gru_baseline import GRUBaseline
from mode_ssm.train.checkpoint import FOLDER, git_commit, point_best, save_checkpoint
from mode_ssm.train.loop_state import LoopState
from mode_ssm.vocab import CLASSES, NUM_CLASSES

ARGS, WEIGHTS = "args.yaml", "best_checkpoint"
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile, in any order
STEP = 0  # the official checkpoint does not say after how many steps it was written
RENAMED = {"h0": "encoder.initial_state", "out.weight": "ctc_head.output.weight", "out.bias": "ctc_head.output.bias"}


def main() -> None:
    arguments = _parser().parse_args()
    run_dir = arguments.output or Path("runs") / arguments.run_name
    if (run_dir / FOLDER).exists():
        raise ValueError(f"{run_dir} holds a run already; choose another --run-name or --output")
    args = read_args(arguments.checkpoint / ARGS)
    config = official_config(args, arguments.checkpoint / ARGS, arguments.run_name, arguments.root)
    sessions = list(args["dataset"]["sessions"])
    model = GRUBaseline(config.model, config.data.feature_dim, len(sessions))
    contents = read_contents(arguments.checkpoint / WEIGHTS)
    weights = our_weights(official_weights(contents, arguments.checkpoint / WEIGHTS), model, arguments.checkpoint)
    metrics = {"val/per": float(contents["val_PER"])} if "val_PER" in contents else None
    num_parameters = sum(p.numel() for p in model.parameters())
    save_checkpoint(
        run_dir,
        STEP,
        weights=weights,
        optimizer_state={},
        rng_states=[],
        config=config,
        state={
            "loop": LoopState(finished=True).to_dict(),
            "metrics": metrics,
            "git_commit": git_commit(),
            "torch_version": torch.__version__,
            "vocabulary": list(CLASSES),
            "imported_from": str(arguments.checkpoint),
            "description": {
                "task": config.task.name.value,
                "sessions": sessions,
                "num_blocks": 0,
                "num_parameters": num_parameters,
            },
        },
    )
    point_best(run_dir, STEP)
    reached = f", validation PER {metrics['val/per']:.4f} by its own account" if metrics else ""
    print(f"{run_dir / 'best'}: {num_parameters:,} parameters, {len(sessions)} sessions{reached}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help=f"folder with {ARGS} and {WEIGHTS}")
    parser.add_argument("--run-name", default="official_gru", help="name of the run (default official_gru)")
    parser.add_argument("--output", type=Path, help="run directory to write, a new one (default runs/<run name>)")
    parser.add_argument("--root", default="data/t15", help="recordings to evaluate on (default data/t15)")
    return parser


def read_args(path: Path) -> dict[str, Any]:
    """The settings of the official training."""
    try:
        args = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ValueError(f"no {ARGS} in {path.parent}: expected the folder that the official training writes") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(args, dict):
        raise ValueError(f"{path}: expected the settings of the official training, found a {type(args).__name__}")
    return {str(key): section for key, section in args.items()}


def official_config(args: Mapping[str, Any], path: Path, run_name: str, root: str) -> TrainConfig:
    """The experiment t15_gru_baseline with the sizes that `args` names."""

    def value(key: str) -> Any:
        found: Any = args
        for name in key.split("."):
            if not isinstance(found, Mapping) or name not in found:
                raise ValueError(f"{path}: {key} is missing")
            found = found[name]
        return found

    for key, needed in (("dataset.n_classes", NUM_CLASSES), ("model.input_network.n_input_layers", 1)):
        if value(key) != needed:
            raise ValueError(f"{path}: {key}={value(key)}; only {needed} can be imported")
    if value("model.patch_size") == 0:
        raise ValueError(f"{path}: model.patch_size=0, a GRU without patches, cannot be imported; expected at least 1")
    if not isinstance(value("dataset.sessions"), list) or not value("dataset.sessions"):
        raise ValueError(f"{path}: dataset.sessions={value('dataset.sessions')}; expected a list of session names")
    if args["dataset"].get("feature_subset") is not None:
        raise ValueError(f"{path}: dataset.feature_subset is set; only models of all features can be imported")
    smoothed = value("dataset.data_transforms.smooth_data")
    settings = {
        "data.root": root,
        "data.feature_dim": value("model.n_input_features"),
        "data.smoothing": (Smoothing.symmetric if smoothed else Smoothing.none).value,
        "data.smoothing_std": value("dataset.data_transforms.smooth_kernel_std"),
        "model.gru.hidden": value("model.n_units"),
        "model.gru.n_layers": value("model.n_layers"),
        "model.gru.patch_size": value("model.patch_size"),
        "model.gru.patch_stride": value("model.patch_stride"),
        "model.gru.dropout": value("model.rnn_dropout"),
        "model.gru.input_dropout": value("model.input_network.input_layer_dropout"),
        "run_name": run_name,
    }
    return load_train_config(["experiment=t15_gru_baseline", *(f"{key}={found}" for key, found in settings.items())])


def read_contents(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote: tensors, numbers and containers; anything else is refused, not run."""
    # The error rates beside the weights may be numpy's scalars, which are pickled as a call of one function.
    numpy_scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32"))]
    allowed += [(numpy_scalar, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"no {WEIGHTS} in {path.parent}: expected what the official training writes") from None
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}, which weights do not need" if asked else "it is no file of torch.save"
        raise ValueError(f"{path} is refused: {reason}") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: expected a dictionary with model_state_dict, found a {type(contents).__name__}")
    return contents


def official_weights(contents: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors by the names of the official model, without what wrappers put before them."""
    named = contents.get("model_state_dict")
    if not isinstance(named, Mapping) or not all(isinstance(value, Tensor) for value in named.values()):
        found = ", ".join(map(str, contents)) or "nothing"
        raise ValueError(f"{path}: no model_state_dict of tensors in it; found {found}")
    weights = {}
    for name, tensor in named.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        weights[name] = tensor.float()
    return weights


def our_weights(official: Mapping[str, Tensor], model: GRUBaseline, folder: Path) -> dict[str, Tensor]:
    """`official` under our names; feature statistics stay those of features that are normalised already.

    Raises `ValueError` where names or shapes are not those of `model`, which is as `args.yaml` says.
    """
    matrices, offsets = (_stacked(official, f"day_{kind}.", folder) for kind in ("weights", "biases"))
    ours = model.state_dict() | {
        "preprocessor.sessions.tables.weight": matrices - torch.eye(matrices.shape[-1]),
        "preprocessor.sessions.tables.offset": offsets.squeeze(1),
    }
    rest = {name: tensor for name, tensor in official.items() if not name.startswith("day_")}
    ours |= {RENAMED.get(name, f"encoder.{name}"): tensor for name, tensor in rest.items()}
    expected = model.state_dict()
    given = {RENAMED.get(name, f"encoder.{name}") for name in rest}
    faults = [f"{name} is missing" for name in expected if not name.startswith("preprocessor.") and name not in given]
    faults += [f"{name} is unknown" for name in ours if name not in expected]
    faults += [
        f"{name} is {tuple(ours[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in ours and ours[name].shape != tensor.shape
    ]
    if faults:
        raise ValueError(f"{folder}: the weights are not those of a GRU as {ARGS} describes it: {'; '.join(faults)}")
    return ours


def _stacked(official: Mapping[str, Tensor], prefix: str, folder: Path) -> Tensor:
    """`prefix`0, `prefix`1, ... one after the other, (S, ...)."""
    found = {name: tensor for name, tensor in official.items() if name.startswith(prefix)}
    order = [f"{prefix}{row}" for row in range(len(found))]
    if not found or set(order) != set(found) or len({tensor.shape for tensor in found.values()}) > 1:
        raise ValueError(f"{folder}: expected {prefix}0, {prefix}1, ... of one shape, found {len(found)} such names")
    return torch.stack([found[name] for name in order])


if __name__ == "__main__":
    run_main(main)
