"""`sinks record`: small copies of an ablation's finished runs, to commit, from which its report is built."""

from pathlib import Path


def record(directory: Path, out: Path) -> None:
    """Copy what reports read of every finished run, some ten kilobytes each, and of the ablation.

    `sinks report` builds the report from the copies, and `sinks grid --recorded` takes them as finished runs.

    Args:
        directory: holds the runs as <variant>/seed<k>/, and perhaps ablation.yaml and transfer.json.
        out: gets them as runs/<variant>/seed<k>/; copies of other seeds that it has stay.
    """
    import shutil

    from sinks.errors import UserError
    from sinks.record import RunFolder
    from sinks.record.fingerprint import reject_another_run
    from sinks.record.recorded import LARGEST
    from sinks.record.recorded import record as copy
    from sinks.report import load_ablation, transfer

    ablation = load_ablation(directory)
    pairs = []
    for run in ablation.runs:
        place = run.folder.path.relative_to(directory)
        target = RunFolder(out / "runs" / place)
        if target.path.resolve() == run.folder.path.resolve():
            raise UserError(f"out is {out}, where the runs of {directory} are: give another folder")
        own = {"config_fingerprint": run.provenance.get("config_fingerprint")}
        reject_another_run(target, own, option="out")
        pairs.append((run.folder, target, str(Path("runs") / directory.resolve().name / place)))
    sizes = {target: copy(source, target, name) for source, target, name in pairs}
    for name in ("ablation.yaml", transfer.FILE):
        if (directory / name).is_file():
            shutil.copy(directory / name, out)
    for target, size in sizes.items():
        if size > LARGEST:
            print(f"note: {target.path} has {size / 1000:.0f} kB, more than {LARGEST // 1000}")
    print(f"{len(sizes)} runs, {sum(sizes.values()) / 1000:.0f} kB, in {out / 'runs'}")
