"""A repeated key, of which YAML would take the last, is an error with file, key and lines."""

from pathlib import Path

import pytest

from sinks.errors import UserError
from sinks.record.yaml_file import read_yaml

TWICE = "trainer: {max_steps: 1}\nmodel: 3\ntrainer: {accelerator: cpu}\n"


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        (TWICE, "trainer", "1 and 3"),
        ("a:\n  b:\n  - {c: 1,\n     c: 2}\n", "c", "3 and 4"),
        ("a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 1\n  e: 2\n", "e", "5 and 6"),
    ],
)
def test_a_repeated_key_is_named(text: str, key: str, lines: str, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as found:
        read_yaml(file)
    assert str(found.value) == f"{file} has key {key!r} twice, in lines {lines}: keep one"


def test_what_yaml_means_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: [*x, *x]\nf: {b: 1}\n")
    plain = {"b": 1, "c": 2}
    assert read_yaml(file) == {"a": plain, "d": {"b": 3, "c": 2}, "e": [plain, plain], "f": {"b": 1}}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 3000, b"a: [", b"a: b: c", b"\x00"])
def test_what_is_no_yaml_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as found:
        read_yaml(file)
    assert str(found.value).startswith(f"{file} is not YAML: ")
    assert "\n" not in str(found.value)
