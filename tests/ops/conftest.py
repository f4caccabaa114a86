"""What the tests of ops share: the backends that this machine's CPU runs."""

from mode_ssm.ops import backends


def usable_backends(op: str) -> list[str]:
    """Backends of `op` that run here in full precision, to parametrise tests with."""
    offered = [name for name in backends.offered(op) if name in backends.FULL_PRECISION]
    return [name for name in offered if backends.why_not(name) is None]
