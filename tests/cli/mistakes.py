"""Every option of the commands, and values that users give by mistake."""

import inspect
from collections.abc import Iterator

from jsonargparse import ArgumentParser

from sinks.cli.training import command_line, subclasses
from sinks.data.backcopy import Backcopy
from sinks.families import CausalLM
from sinks.families.optimizers import AdamW, MuonAdamW
from sinks.models.attention_gates import AttentionGate
from sinks.models.clips import ResidualClip
from sinks.models.mixers import FeedForward
from sinks.models.normalizers import Normalizer
from sinks.models.norms import Norm
from tests.cli.small import SMALL

Case = tuple[list[str], str]  # arguments that an option needs before it, and the option

COMPONENTS = {
    "normalizer": Normalizer,
    "attention_gate": AttentionGate,
    "norm": Norm,
    "head_norm": Norm,
    "residual_clip": ResidualClip,
    "feed_forward": FeedForward,
}
VALUES = [
    "0", "-1", "1", "2", "0.5", "-0.5", "1.5", "1e-320", "1e308", "-1e308", "4294967296", "9223372036854775808",
    "nan", "inf", "-inf", ".nan", ".inf", "-.inf", "", " ", "null", "true", "false", "two", "1,2", "[]", "{}",
    "[0]", "[-1, nan]", "[[]]", "{a: 1}", "{class_path: nowhere.Nothing}", "{init_args: 3}", "[", "{", "'", "${",
    "${run}", "${run.nosuch}", "a: b: c", "!!python/object:os.system", "&a [*a]", "-", "--", "@", "\u00fc\u65e5",
    "\ud800", "x" * 5000, ".", "/dev/null", "/proc/nowhere/x", "FILE", "FOLDER", "BINARY",
]  # fmt: skip
# Numbers of things that are built one by one: above a few, valid values are more work than a test does.
COUNTS = ("n_layers", "devices", "num_nodes")
# Where files go, which is tested with other values than these.
PLACES = ("run.dir", "trainer.default_root_dir", "data.folder")


def feasible(name: str, value: str) -> bool:
    """Whether a test can give an option a value."""
    try:
        return name.split(".")[-1] not in COUNTS or not float(value) > 16
    except ValueError:
        return True


def own(kind: type) -> bool:
    """Whether a class is the suite's, and can be built by name."""
    return kind.__module__.startswith("sinks.") and not inspect.isabstract(kind)


def options_of(kind: type) -> list[str]:
    """The options of a class, dotted."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind, fail_untyped=False)
    return [name for name in vars(parser.get_defaults().as_flat()) if name not in ("vocab_size", "config", "site")]


def cases() -> Iterator[Case]:
    """Every option of `sinks fit`: of the parser, of every family, of every component, and of the optimizers."""
    parser = command_line([*SMALL, "--run.dir=unused"], run=False).parser
    for action in parser._actions:
        if action.dest not in ("help", "config", "print_config") and not action.dest.endswith(".help"):
            yield [], action.dest
    for family in sorted(filter(own, {CausalLM, *subclasses(CausalLM)}), key=lambda kind: kind.__name__):
        for name in options_of(family):
            yield [f"--model={family.__name__}"], f"model.{name}"
    for name in options_of(Backcopy):
        yield ["--data=Backcopy"], f"data.{name}"
    for component, base in COMPONENTS.items():
        for kind in sorted(filter(own, subclasses(base)), key=lambda kind: kind.__name__):
            _, *options = inspect.signature(kind).parameters
            for name in options:
                yield ["--model=CausalLM", f"--model.{component}={kind.__name__}"], f"model.{component}.{name}"
    for optimizer in (AdamW, MuonAdamW):
        _, *options = inspect.signature(optimizer).parameters
        for name in options:
            yield [f"--model.optimizer={optimizer.__name__}"], f"model.optimizer.{name}"
