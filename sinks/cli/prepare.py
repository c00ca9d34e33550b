"""`sinks prepare`: turn text into token chunks ahead of training."""

import os
from typing import Literal

from sinks.cli.parser import run_function


def prepare(
    sources: list[str] | None = None,
    *,
    output: str = "data",
    vocab_size: int = 4096,
    bos: Literal["none", "document", "block"] = "document",
    validation_share: float = 0.05,
    text_field: str = "text",
    processes: int | None = None,
    progress: bool = True,
    tokenizer: str | None = None,
) -> None:
    """Tokenize text into checksummed chunks in a folder of its own; nothing is done twice.

    Args:
        sources: .txt, .jsonl and .parquet files (UTF-8), and folders of them, links followed; none: the source files
            of Python's standard library.
        output: folder that holds prepared corpora.
        vocab_size: number of token ids, including `<bos>`; at least 257.
        bos: where `<bos>` is: nowhere (none), before every document (document), first in every row (block).
        validation_share: fraction of documents for validation, between 0 and 1.
        text_field: field of a .jsonl line, column of a .parquet file.
        processes: processes that tokenize; none: one for each core.
        progress: show progress bars on a terminal.
        tokenizer: tokenizer.json of a model to use in place of one trained on the text; bos must be none.
    """
    from sinks.data.manifest import verify
    from sinks.data.prepare import Preparation

    plan = Preparation.plan(sources, output, vocab_size, bos, validation_share, text_field, tokenizer)
    unchanged = plan.finished
    folder = plan.run(processes, progress)
    manifest = verify(folder)
    print(f"{folder}{' (unchanged)' if unchanged else ''}")
    skipped = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items() if count)
    # A name that is no text, which a terminal could not show, is written with escapes.
    names = os.fsencode(", ".join(manifest.sources)).decode(errors="backslashreplace")
    print(f"  sources     {names}: {manifest.files} files, {sum(manifest.skipped.values())} skipped", end="")
    print(f" ({skipped})" if skipped else "")
    print(f"  documents   one is a {manifest.unit}; {manifest.records_without_text:,} without text dropped")
    print(f"  vocabulary  {manifest.tokenizer_entries} entries, bos {bos}")
    for name, split in manifest.splits.items():
        print(f"  {name:<10}  {split.tokens:,} tokens, {split.documents:,} documents, {split.bytes:,} bytes")


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks prepare`."""
    run_function(prepare, command, arguments, several=("sources", "files and folders; none: the standard library"))
