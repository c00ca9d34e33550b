"""The packages of the extra `hf`, which only pretrained models need."""

from importlib.util import find_spec

from sinks.errors import UserError


def require_extra(*packages: str) -> None:
    """Check that packages of the extra `hf` are installed, without importing them.

    Raises:
        UserError: naming those that are not.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)} must be installed to read a pretrained model: run pip install 'sinks[hf]'"
        )
