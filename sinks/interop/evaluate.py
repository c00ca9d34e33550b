"""Tasks of EleutherAI's lm-evaluation-harness on a run or a pretrained model (extra `eval`)."""

import difflib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from sinks.errors import UserError
from sinks.interop.evaluated import Evaluated
from sinks.interop.lm_eval_model import LogitsModel
from sinks.interop.weight_files import one_line


def load_tasks(names: Sequence[str], include: Path | None = None, num_fewshot: int | None = None) -> dict[str, Any]:
    """Tasks with their data, which may have to be downloaded; seeds and options are those of lm-eval's own command.

    Args:
        names: of tasks, groups and tags.
        include: folder of further task files (YAML), which replace those of the same name.
        num_fewshot: number of solved examples before each document, but for tasks that are defined without any; None:
            as the task has it.

    Returns:
        As lm-eval's `TaskManager.load`: `tasks` and `groups` by name.

    Raises:
        UserError: if a name is unknown, or a task cannot be loaded or run here.
    """
    manager = _manager(names, include)
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    try:
        loaded = manager.load(list(names))
    except Exception as error:  # those of the network, of data sets and of task files are of many libraries
        raise UserError(
            f"{', '.join(names)} could not be loaded ({one_line(error)}): check the task's file and its data, or "
            "connect to the network once"
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"{name} runs code that the model writes, which is not done here: leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"{name} has images or sound, which the model does not take: leave it out")
        own = task.get_config("num_fewshot")
        task.set_config("num_fewshot", num_fewshot if num_fewshot is not None and own != 0 else own or 0)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return loaded


def _manager(names: Sequence[str], include: Path | None) -> TaskManager:
    """What knows all the names; to read the thousands of files of lm-eval takes seconds."""
    if include is not None:
        manager = TaskManager(include_path=include, include_defaults=False)
        if set(names) <= set(manager.all_subtasks):  # a group may name tasks of lm-eval
            return manager
    manager = TaskManager(include_path=include)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            where = f", nor of a readable file in {include}" if include else ""
            hint = f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks lists all"
            raise UserError(f"{name!r} is no task of lm-eval{where}: {hint}")
    return manager


def evaluate(
    evaluated: Evaluated, tasks: dict[str, Any], limit: int | None = None, batch_size: int = 8
) -> dict[str, Any]:
    """Run tasks.

    Args:
        evaluated: the model.
        tasks: of `load_tasks`.
        limit: number of documents of each task; None: all.
        batch_size: rows at a time.

    Returns:
        What lm-eval returns, as plain values (`results`, `configs`, `versions`, `n-shot`, `n-samples`, ...); `model`,
        its identity; `options`; and `truncated`, the number of requests whose context was longer than the model
        takes, and lost its first tokens.

    Raises:
        UserError: if the model cannot do what a task asks.
    """
    model = LogitsModel(evaluated, batch_size)
    found = run_tasks(model, tasks, limit=limit, log_samples=False)
    options = {
        "limit": limit,
        "batch_size": batch_size,
        "max_length": model.max_length,
        "prefix_token_id": evaluated.special.prefix,
    }
    own = {"model": evaluated.identity, "options": options, "truncated": model.truncated}
    return own | json.loads(json.dumps(found, default=handle_non_serializable))
