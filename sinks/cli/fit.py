"""`sinks fit` and `sinks validate`: what is answered at once; the rest is `sinks.cli.training`, imported after it."""

from sinks.cli.nearest import reject_mistyped


def main(command: str, arguments: list[str]) -> None:
    """Run `fit` or `validate`."""
    reject_mistyped(arguments)
    from sinks.cli.training import command_line

    command_line([command, *arguments])
