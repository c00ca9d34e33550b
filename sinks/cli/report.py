"""`sinks report`: tables, figures and one HTML file from the runs below a folder, or the page of its analyses."""

from pathlib import Path


def report(directory: Path, out: Path | None = None) -> None:
    """Compare every finished run below a folder: report.md, report.html, figures/, and a table here.

    A folder of analyses gets their page, model.html, instead.

    Args:
        directory: holds the runs as <variant>/seed<k>/, and perhaps ablation.yaml; or analyses of sinks analyze.
        out: folder of the report; the same folder by default.
    """
    from sinks.cli.analyze import PAGE
    from sinks.record import find_runs
    from sinks.report import terminal, write_report
    from sinks.report.model_page import write_model_page

    found = find_runs(directory)
    if found and all(folder.analyzed for folder in found):
        page = (out or directory) / PAGE
        write_model_page([folder.path for folder in found], page)
        print(f"page: {page}")
        return
    ablation, html = write_report(directory, out)
    print(terminal(ablation))
    print("\n+- is half the range over seeds; * a loss difference whose sign these seeds can tell.")
    print(f"report: {html}")
