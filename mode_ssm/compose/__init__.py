"""From the command line and `configs/` to checked, typed configurations."""

from mode_ssm.compose.keys import ConfigError
from mode_ssm.compose.launch import run_main
from mode_ssm.compose.loading import (
    apply_overrides,
    load_evaluate_config,
    load_submission_config,
    load_train_config,
    load_tune_config,
)
from mode_ssm.compose.loading_comparison import load_compare_config
from mode_ssm.compose.validation import validate

__all__ = [
    "ConfigError",
    "apply_overrides",
    "load_compare_config",
    "load_evaluate_config",
    "load_submission_config",
    "load_train_config",
    "load_tune_config",
    "run_main",
    "validate",
]
