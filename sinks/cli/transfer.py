"""`sinks transfer`: whether the variants of an ablation do at each token what the baseline's sink does."""

from pathlib import Path


def transfer(directory: Path, rows: int = 96, first_query: int = 2) -> None:
    """Correlate the effective weight and scale of the finished runs below a folder, token by token.

    Args:
        directory: holds the runs as <variant>/seed<k>/, with their checkpoints, and perhaps ablation.yaml.
        rows: of the validation set, which all runs must share.
        first_query: queries before it are left out.
    """
    from sinks.errors import require
    from sinks.record.folder import to_json, write_atomically
    from sinks.report import load_ablation
    from sinks.report.transfer import FILE, terminal
    from sinks.transfer.ablation import measure

    require("rows", rows, at_least=1, remedy="give e.g. 96")
    found = measure(load_ablation(directory), rows, first_query)
    write_atomically(directory / FILE, to_json(found))
    print(terminal(directory))
    print(f"\n{directory / FILE}")
