"""Train, measure, question and replace attention sinks and residual sinks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinks.interop.check import check

__version__ = "0.1.0"
__all__ = ["__version__", "check"]


def __getattr__(name: str) -> Any:
    """`sinks.check`, which needs torch and transformers, is imported when it is asked for."""
    if name != "check":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sinks.interop.extra import require_extra

    require_extra("transformers")
    from sinks.interop.check import check

    return check
