"""`sinks fit` and `sinks validate`: what is answered at once; the rest is `sinks.cli.training`, imported after it."""

from sinks.cli.help import full_help, short_help
from sinks.cli.nearest import reject_mistyped


def main(command: str, arguments: list[str]) -> None:
    """Run `fit` or `validate`."""
    if answer := short_help(command, arguments):
        print(answer)
        return
    reject_mistyped(arguments)
    from sinks.cli.training import command_line

    command_line([command, *full_help(arguments)])
