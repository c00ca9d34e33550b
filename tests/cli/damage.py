"""What can happen to a file of a run folder."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

WHOLE = {
    "empty": b"",
    "random bytes": bytes((i * 197 + 89) % 256 for i in range(256)),
    "null": b"null",
    "number": b"3",
    "text": b'"text"',
    "list": b"[]",
    "list of lists": b"[[1, 2], [3]]",
    "empty mapping": b"{}",
    "other mapping": b'{"step": "one", "model": 3, "data": [], "variants": [1], "sites": {}}',
    "deep": b"[" * 3000,
}
ENTRIES = [None, "text", -1, float("inf"), [], [[]], {}, {"a": None}, True]


def damages(file: Path) -> Iterator[str]:
    """Names of what can happen to a file, or to a folder of shards."""
    yield from ("deleted", "a folder", "truncated", "a byte changed", *WHOLE)
    if file.suffix in (".json", ".yaml", ".jsonl"):
        for key in _read(file):
            yield from (f"{key} = {i}" for i in range(len(ENTRIES)))
            yield f"no {key}"


def damage(file: Path, name: str) -> None:
    """Do it."""
    content = file.read_bytes()
    if name in ("deleted", "a folder"):
        file.unlink()
        if name == "a folder":
            file.mkdir()
    elif name == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif name == "a byte changed":
        changed = bytearray(content)
        for place in range(len(content))[len(content) // 2 :][:1]:
            changed[place] ^= 255
        file.write_bytes(changed)
    elif name in WHOLE:
        file.write_bytes(WHOLE[name])
    else:
        entries = _read(file)
        key, _, which = name.partition(" = ")
        if which:
            entries[key] = ENTRIES[int(which)]
        else:
            del entries[key.removeprefix("no ")]
        _write(file, entries)


def _read(file: Path) -> dict:
    text = file.read_text()
    if file.suffix == ".jsonl":
        return json.loads(text.splitlines()[-1])
    return yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)


def _write(file: Path, entries: dict) -> None:
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines[:-1], json.dumps(entries)]) + "\n")
    else:
        file.write_text(yaml.safe_dump(entries) if file.suffix == ".yaml" else json.dumps(entries))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, by its path: what must be the same after an error."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if path.exists()
    }


def copied(folder: Path, to: Path) -> Path:
    """A copy in an empty place, links included."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to, symlinks=True)
    return to
