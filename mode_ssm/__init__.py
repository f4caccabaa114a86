"""mode_ssm: brain-to-text decoders built on state-space models."""

__version__ = "0.1.0"
