"""`sinks report`: tables, figures and one HTML file from every finished run below a folder."""

from pathlib import Path


def report(directory: Path, out: Path | None = None) -> None:
    """Compare every finished run below a folder: report.md, report.html, figures/, and a table here.

    Args:
        directory: holds the runs as <variant>/seed<k>/, and perhaps ablation.yaml.
        out: folder of the report; the same folder by default.
    """
    from sinks.report import terminal, write_report

    ablation, html = write_report(directory, out)
    print(terminal(ablation))
    print("\n+- is half the range over seeds; * a loss difference whose sign these seeds can tell.")
    print(f"report: {html}")
