"""Train, measure, question and replace attention sinks and residual sinks.

The names that most programs need are here, each imported when it is asked for: `import sinks` alone imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinks.data.backcopy import Backcopy
    from sinks.data.text import Text
    from sinks.families import Baseline, CausalLM, Clipped, Gated, NoNorm, SinkAbsorbed
    from sinks.interop.check import check
    from sinks.interop.find import find_sites
    from sinks.models.decoder import Architecture
    from sinks.models.taps import editing
    from sinks.observe import Reader, sites_of
    from sinks.record import RunFolder
    from sinks.report import load_ablation, write_report
    from sinks.runs import load_run, train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "Backcopy", "Text",
    "Architecture", "CausalLM", "Baseline", "NoNorm", "Clipped", "SinkAbsorbed", "Gated",
    "train", "load_run", "RunFolder",
    "Reader", "sites_of", "find_sites", "editing",
    "check",
    "load_ablation", "write_report",
]  # fmt: skip
_MODULES = {
    "sinks.data.backcopy": ("Backcopy",),
    "sinks.data.text": ("Text",),
    "sinks.families": ("Baseline", "CausalLM", "Clipped", "Gated", "NoNorm", "SinkAbsorbed"),
    "sinks.interop.check": ("check",),
    "sinks.interop.find": ("find_sites",),
    "sinks.models.decoder": ("Architecture",),
    "sinks.models.taps": ("editing",),
    "sinks.observe": ("Reader", "sites_of"),
    "sinks.record": ("RunFolder",),
    "sinks.report": ("load_ablation", "write_report"),
    "sinks.runs": ("load_run", "train"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported from its module (PEP 562).

    Raises:
        AttributeError: if there is no such name.
        UserError: if it needs transformers, which is not installed.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "check":
        from sinks.interop.extra import require_extra

        require_extra("transformers")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
