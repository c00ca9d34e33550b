"""The command line: a dispatcher that imports neither torch nor Lightning; each command is imported when called.

A command's module has a `main`, or a function of the command's name whose signature makes the parser.
"""

import os
import sys
from importlib import import_module

import sinks

COMMANDS = {
    "fit": ("sinks.cli.fit", "train a variant and record it in a run folder"),
    "validate": ("sinks.cli.fit", "measure a checkpoint: loss and sink statistics"),
    "consolidate": ("sinks.cli.consolidate", "turn a checkpoint of shards into one file"),
    "check": ("sinks.cli.check", "test the properties of every variant on yours, or a model's sinks"),
    "plan": ("sinks.cli.plan", "count parameters, memory and operations, allocating nothing"),
    "analyze": ("sinks.cli.analyze", "find the sinks of a pretrained model, on a page"),
    "evaluate": ("sinks.cli.evaluate", "run lm-eval's tasks on a run or a pretrained model"),
    "accuracy": ("sinks.cli.accuracy", "measure accuracy on small tasks made from a run's validation set"),
    "probe": ("sinks.cli.probe", "measure what a model's loss owes to its sinks, and name their role"),
    "quantize": ("sinks.cli.quantize", "measure what low-precision weights and activations cost a model"),
    "prepare": ("sinks.cli.prepare", "turn text into token chunks"),
    "grid": ("sinks.cli.grid", "train every run of an ablation, several at a time"),
    "power": ("sinks.cli.power", "count the seeds that a loss difference needs"),
    "transfer": ("sinks.cli.transfer", "correlate runs token by token: is the sink's job done by other means?"),
    "value": ("sinks.cli.value", "print one number of a finished run"),
    "import": ("sinks.cli.import_model", "turn a Hugging Face checkpoint into a run folder to train from"),
    "export": ("sinks.cli.export", "turn a run into a folder that transformers opens"),
    "record": ("sinks.cli.record", "copy what reports read of finished runs, small enough to commit"),
    "report": ("sinks.cli.report", "turn run folders into tables, figures and one HTML file"),
    "completion": ("sinks.cli.completion", "print what makes a shell complete commands and options"),
}
# Those that import for seconds before their own first line.
LOADS = {"fit", "validate", "check", "analyze", "evaluate", "probe", "quantize", "transfer", "import", "export"}


def usage() -> str:
    """The help of `sinks` itself."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sinks COMMAND ...",
            "",
            "Train, measure, question and replace attention sinks and residual sinks.",
            "",
            *lines,
            "",
            "`sinks COMMAND --help` describes a command; `sinks fit --model.help Gated` lists a family's options.",
            "The help of fit, validate and plan is short; `--help-all` lists every option.",
            "`sinks --version` prints the versions of sinks, torch, lightning and triton.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 for a user error. In a distributed run the process ends here."""
    from sinks.parallel.process_exit import exit_process, is_distributed

    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stopped:
        if not is_distributed() or not isinstance(stopped.code, int):
            raise
        code = stopped.code
    if is_distributed():
        exit_process(code)
    return code


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from sinks.record.versions import version_line

        print(version_line(sinks.__version__))
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        from sinks.cli.nearest import suggestion

        remedy = suggestion(command, COMMANDS) or f"choose one of {', '.join(COMMANDS)}"
        print(f"sinks: error: unknown command {command!r}: {remedy}", file=sys.stderr)
        return 2
    if command in LOADS and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"sinks {command}: loading", file=sys.stderr, flush=True)
    from sinks.errors import UserError

    try:
        module = import_module(COMMANDS[command][0])
        if hasattr(module, "main"):
            module.main(command, rest)
        else:
            from sinks.cli.parser import run_function

            run_function(getattr(module, command), command, rest)
    except UserError as error:
        # A name of a file or field may have line breaks.
        print(f"sinks: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output has ended, as `head` does; Python would raise again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from sinks.record.atomic import FULL

        if error.filename is None:
            raise
        failed, remedy = "read or written", "check the path and its permissions"
        if error.errno in FULL:
            failed, remedy = "written", "free space"
        print(f"sinks: error: {error.filename} could not be {failed}: {error.strerror}: {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sinks {command}: interrupted", file=sys.stderr)
        return 130
    return 0
