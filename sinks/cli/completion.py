"""`sinks completion`: commands and options for the completion of bash and zsh."""

import contextlib
import io
import re
from typing import Literal

from sinks.cli.help import ABOUT, ALL

# bash's builtins, which zsh has after bashcompinit.
SCRIPT = """\
{zsh}_sinks() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "$words" -- "$word"))
       else COMPREPLY=($(compgen -f -- "$word")); fi ;;
  esac
}}
complete -o filenames -F _sinks sinks"""


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script that completes the commands of sinks, their options, and files: eval "$(sinks completion bash)".

    Args:
        shell: bash or zsh.
    """
    from sinks.cli import COMMANDS

    cases = "\n".join(f'      {command}) words="{" ".join(options(command))}" ;;' for command in COMMANDS)
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    print(SCRIPT.format(zsh=zsh, commands=" ".join(COMMANDS), cases=cases))


def options(command: str) -> list[str]:
    """The options of a command, as its own help lists them."""
    from sinks.cli import run

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run([command, ALL if command in ABOUT else "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[A-Za-z][\w.]*(?:-[\w.]+)*", text.getvalue())))
