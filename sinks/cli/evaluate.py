"""`sinks evaluate`: tasks of EleutherAI's lm-evaluation-harness on a run or a pretrained model."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Literal

from sinks.errors import UserError, require

RESULTS = "results.json"


def evaluate(
    model: str,
    *,
    tasks: str = "",
    include: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    prefix_token_id: int | None = None,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    out: Path | None = None,
    cache: Path = Path("data"),
    trust_remote_code: bool = False,
) -> None:
    """Run tasks of lm-eval on the last checkpoint of a run, or on a pretrained model: a table, and results.json.

    Args:
        model: a run folder, "smollm2", a folder, a .gguf file or a name on the Hugging Face hub.
        tasks: names of tasks, groups and tags, separated by commas; lm-eval ls tasks lists them.
        include: folder of further task files (YAML), which need no network if their data do not.
        limit: number of documents of each task; all by default.
        num_fewshot: number of solved examples before each document; as the task has it by default.
        batch_size: rows at a time.
        prefix_token_id: what the first token of a text without context is predicted from; by default the tokenizer's
            BOS, or EOS if it has none.
        device: cpu, cuda, or auto: a GPU if there is one.
        dtype: of the weights of a pretrained model.
        out: folder of results.json, which must not exist; runs/evaluation/MODEL by default.
        cache: folder that holds converted .gguf files.
        trust_remote_code: whether code that a model brings may run.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("the tasks are missing: sinks evaluate MODEL --tasks NAME,NAME, e.g. --tasks lambada_openai")
    if include is not None and not include.is_dir():
        raise UserError(f"there is no folder {include} of task files: check --include")
    require("batch_size", batch_size, at_least=1, remedy="give e.g. 8")
    for name, number, lowest in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0)):
        if number is not None:
            require(name, number, at_least=lowest, remedy="give more, or leave it out")

    from sinks.cli.analyze import device_of, slug

    file = (out or Path("runs/evaluation") / slug(model)) / RESULTS
    if file.exists():
        raise UserError(f"{file} exists: choose another --out, or remove it")

    from sinks.interop.extra import require_extra

    require_extra("lm_eval", extra="eval", purpose="to run its tasks")
    import torch
    from lm_eval.utils import make_table

    from sinks.interop.evaluate import evaluate as run_tasks
    from sinks.interop.evaluate import load_tasks
    from sinks.interop.evaluated import load_evaluated
    from sinks.record.folder import to_json, write_atomically
    from sinks.record.provenance import provenance

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with suppress(ImportError):  # which a run may do without
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        set_verbosity_error()
        disable_progress_bar()
    started = provenance("transformers", "lm_eval", "datasets")
    loaded = load_tasks(names, include, num_fewshot)
    evaluated = load_evaluated(
        model, device_of(device), getattr(torch, dtype), trust_remote_code, cache, prefix_token_id
    )
    results = run_tasks(evaluated, loaded, limit, batch_size)
    write_atomically(file, to_json(results | {"provenance": started}, indent=2) + "\n")
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    if results["truncated"]:
        print(
            f"{results['truncated']} contexts were longer than {evaluated.max_length} tokens: their first were left out"
        )
    print(file)
