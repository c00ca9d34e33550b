"""Run folders into tables, figures and one self-contained HTML file."""

from sinks.report.page import write_report
from sinks.report.runs import Ablation, Run, Variant, load_ablation
from sinks.report.tables import terminal

__all__ = ["Ablation", "Run", "Variant", "load_ablation", "terminal", "write_report"]
