"""Run folders into tables, figures and one self-contained HTML file."""

from sinks.report.ablation import Ablation, Run, Variant, load_ablation
from sinks.report.render import write_report
from sinks.report.tables import terminal

__all__ = ["Ablation", "Run", "Variant", "load_ablation", "terminal", "write_report"]
