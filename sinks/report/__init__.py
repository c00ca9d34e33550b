"""Run folders into tables, figures and one self-contained HTML file."""

from sinks.report.ablation import load_ablation
from sinks.report.outcomes import compare
from sinks.report.render import write_report
from sinks.report.tables import terminal

__all__ = ["compare", "load_ablation", "terminal", "write_report"]
