"""YAML as every reader of the project takes it: a key that is there twice is an error, where YAML takes the last."""

from pathlib import Path
from typing import Any

import yaml

from sinks.errors import UserError


def read_yaml(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: naming the file, and what is wrong in which line: no file, no text, no YAML, or a repeated key.
    """
    try:
        text = file.read_text(encoding="utf-8")
        reject_repeated_keys(text, str(file))
        return yaml.safe_load(text)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no file {file}: check the path") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None


def reject_repeated_keys(text: str, name: str) -> None:
    """Reject YAML in which a mapping has a key twice, of which a reader would see the last only.

    Args:
        text: YAML.
        name: where it is from, for the message.

    Raises:
        UserError: naming the key and both of its lines.
        yaml.YAMLError: if it is not YAML.
    """
    seen: set[int] = set()  # an alias is the same node again
    nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                nodes.append(value)
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise UserError(
                        f"{name} has key {key.value!r} twice, in lines {lines[key.value]} and {line}: keep one"
                    )
                lines[key.value] = line
