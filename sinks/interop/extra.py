"""The packages of the optional extras, which only some commands need."""

from importlib.util import find_spec

from sinks.errors import UserError


def require_extra(*packages: str, extra: str = "hf", purpose: str = "to read a pretrained model") -> None:
    """Check that packages of an extra are installed, without importing them.

    Args:
        packages: names as imported.
        extra: that installs them.
        purpose: what they are needed for.

    Raises:
        UserError: naming those that are not.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} must be installed {purpose}: run pip install 'sinks[{extra}]'")
