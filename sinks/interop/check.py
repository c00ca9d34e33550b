"""Properties of a transformers model: its sinks reach every attention implementation, the optimizer, the checkpoint."""

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from sinks.checks.check import Line, tried
from sinks.checks.subject import Broken, NotTried, same
from sinks.errors import UserError
from sinks.interop.find import find_model
from sinks.interop.planted import LENGTH, WINDOW, Sink, other_sinks, planted, rows_of, windows
from sinks.interop.seam import IMPLEMENTATION, configurations, implementation


def check(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Line]:
    """Test whether a model's sinks reach everything that runs, trains or saves it.

    Args:
        module: a transformers causal LM, or a module that holds one, on its device; unchanged afterward.
        optimizer: that trains it; by default one over `module.parameters()`.

    Returns:
        One line per property; `str(line)` is its row of the table.

    Raises:
        UserError: if there is no transformers model, or there are several.
    """
    model = find_model(module)
    if model is None:
        raise UserError(
            f"{type(module).__name__} holds no transformers model: give one; a variant is tested by sinks.checks.check"
        )
    return list(check_model(model, optimizer))


def check_model(model: PreTrainedModel, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Line]:
    """The lines of `check`, each as soon as it is known; the model is as before once all have been taken."""
    tokens = rows_of(model)
    with planted(model, tokens) as sinks:
        subject = _Subject(model, tokens, [] if isinstance(sinks, ValueError) else sinks)
        if subject.sinks:
            yield tried("sinks in the optimizer", partial(_in_the_optimizer, subject, optimizer))
            yield tried("sinks in the checkpoint", partial(_in_the_checkpoint, subject))
        else:
            yield Line("learned sinks", "not tried", str(sinks or "the model has none"))
        for name in ("eager", *sorted(name for name in ALL_ATTENTION_FUNCTIONS if not name.startswith("paged|"))):
            yield from _lines_of(subject, name)


def _lines_of(subject: "_Subject", name: str) -> Iterator[Line]:
    """The lines of an attention implementation; one if it cannot be run with the model."""
    supported = tried(name, partial(_require_supported, subject.model, name))
    if supported.result != "passed":
        yield supported
        return
    properties = dict(PROPERTIES)
    if name == "eager":
        del properties["logits"], properties["gradients"]  # it is what others are compared with
    if not subject.sinks:
        del properties["sink gradients"]
    for what, property in properties.items():
        with torch.compiler.set_stance("force_eager" if subject.model.device.type == "cpu" else "default"):
            line = tried(f"{name}: {what}", partial(property, subject, name))
        yield line


@dataclass
class _Subject:
    """A model with all that is planted, and what eager attention makes of it."""

    model: PreTrainedModel
    tokens: Tensor
    sinks: list[Sink]

    @property
    def tolerance(self) -> float:
        """Relative to the largest value: half of the dtype's digits, far above rounding and far below a fault."""
        return torch.finfo(self.model.dtype).eps ** 0.5

    def logits(self, name: str, tokens: Tensor | None = None, **more: Any) -> Tensor:
        """Logits [B, T, V] float32 by an attention implementation."""
        with implementation(self.model, name):
            return self.model(
                input_ids=self.tokens if tokens is None else tokens, use_cache=False, **more
            ).logits.float()

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Gradients of the loss of the next token, by the name of the parameter."""
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not trained:
            raise NotTried("no parameter is trained")
        loss = F.cross_entropy(self.logits(name)[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten())
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(trained.items(), found, strict=True)}

    @cached_property
    def eager_gradients(self) -> dict[str, Tensor]:
        """Those of eager attention."""
        return self.gradients("eager")


def _require_supported(model: PreTrainedModel, name: str) -> None:
    flash = {f"flash_attention_{version}": entry for version, entry in FLASH_ATTENTION_COMPATIBILITY_MATRIX.items()}
    # transformers would download a kernel in its place.
    if name in flash and not flash[name]["general_availability_check"]():
        raise NotTried("it is not installed, or not for this machine")
    with implementation(model, "eager"):  # whatever is set inside is undone
        try:
            model.set_attn_implementation(name)
        except (ImportError, ValueError) as error:
            raise NotTried(" ".join(str(error).split()).partition(". ")[0]) from None
        used = {getattr(config, IMPLEMENTATION) for config in configurations(model)}
    if used != {name}:
        raise NotTried(f"{type(model).__name__} runs {', '.join(map(str, used - {name}))} instead")


@contextlib.contextmanager
def _rejecting(name: str) -> Iterator[None]:
    """An implementation that says that it cannot do something drops nothing in silence, and is not tried."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # of which NotImplementedError is one
        raise NotTried(f"{name} rejects it: {' '.join(str(error).split())[:200]}") from None


@torch.no_grad()
def _logits(subject: _Subject, name: str) -> None:
    """Logits are those of eager attention."""
    with _rejecting(name):
        found = subject.logits(name)
    try:
        same(found, subject.logits("eager"), "the output, compared with that of eager attention,", subject.tolerance)
    except Broken as difference:
        causes = "; ".join(_causes(subject, name, found))
        raise Broken(f"{difference}{causes and f': {causes}'}") from None


def _causes(subject: _Subject, name: str, found: Tensor) -> Iterator[str]:
    """What is planted and has no effect on the logits, though it has one by eager attention."""
    expected = subject.logits("eager")
    if subject.sinks:
        with other_sinks(subject.sinks):
            if torch.equal(subject.logits(name), found):
                yield "the sinks have no effect"
    with windows(subject.model, LENGTH):
        if not torch.equal(subject.logits("eager"), expected) and torch.equal(subject.logits(name), found):
            yield f"the window of {WINDOW} tokens has no effect"


def _gradients(subject: _Subject, name: str) -> None:
    """Gradients of every parameter are those of eager attention."""
    expected = subject.eager_gradients
    with _rejecting(name):
        found = subject.gradients(name)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for parameter, gradient in expected.items():
        # A gradient that is zero but for rounding has no digits of its own.
        what = f"the gradient of {parameter}, compared with eager attention,"
        same(found[parameter], gradient, what, subject.tolerance, floor=subject.tolerance * largest)


def _sink_gradients(subject: _Subject, name: str) -> None:
    """The sink of every head gets a gradient."""
    _require_trained(subject.sinks)
    with _rejecting(name):
        found = subject.gradients(name)
    without = [sink.name for sink in subject.sinks if sink.name not in found or not bool(found[sink.name].all())]
    if without:
        raise Broken(f"no gradient reaches {_some(without)}")


@torch.no_grad()
def _packed_by_positions(subject: _Subject, name: str) -> None:
    """Several texts in a row, known by positions that start again, give what each gives alone."""
    tokens = subject.tokens
    positions = torch.arange(LENGTH, device=tokens.device).repeat(len(tokens))[None]
    _same_as_separate(subject, name, position_ids=positions)


@torch.no_grad()
def _packed_by_a_mask(subject: _Subject, name: str) -> None:
    """Several texts in a row, kept apart by a block-diagonal mask [1, 1, T, T], give what each gives alone."""
    tokens = subject.tokens
    positions = torch.arange(LENGTH, device=tokens.device).repeat(len(tokens))[None]
    one = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=tokens.device).tril()
    allowed = torch.block_diag(*[one] * len(tokens)).bool()
    mask = torch.zeros(allowed.shape, dtype=subject.model.dtype, device=tokens.device)
    mask = mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)[None, None]
    # A mask of one's own replaces that of the windows.
    with windows(subject.model, tokens.numel()):
        _same_as_separate(subject, name, position_ids=positions, attention_mask=mask)


def _same_as_separate(subject: _Subject, name: str, **packing: Tensor) -> None:
    with _rejecting(name):
        packed = subject.logits(name, subject.tokens.reshape(1, -1), **packing)
    separate = subject.logits(name)
    what = "the output for two packed texts, compared with that for separate ones,"
    same(packed.view_as(separate), separate, what, subject.tolerance)


PROPERTIES: dict[str, Callable[[_Subject, str], None]] = {
    "logits": _logits,
    "gradients": _gradients,
    "sink gradients": _sink_gradients,
    "packed rows, by positions": _packed_by_positions,
    "packed rows, by a mask": _packed_by_a_mask,
}


def _require_trained(sinks: list[Sink]) -> None:
    frozen = [s.name for s in sinks if isinstance(s.source, nn.Parameter) and not s.source.requires_grad]
    if frozen:
        raise NotTried(f"frozen: {_some(frozen)}")


def _in_the_optimizer(subject: _Subject, optimizer: torch.optim.Optimizer | None) -> None:
    """The optimizer updates every sink, once."""
    _require_trained(subject.sinks)
    optimizer = optimizer or torch.optim.SGD(subject.model.parameters())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if lost := [sink.name for sink in subject.sinks if held.count(id(sink.source)) != 1]:
        raise Broken(f"its groups do not hold {_some(lost)}, or not once")


def _in_the_checkpoint(subject: _Subject) -> None:
    """State dict and `save_pretrained` hold every sink."""
    state = subject.model.state_dict()
    held = {sink.name: state[sink.name] for sink in subject.sinks if sink.name in state}
    if lost := [sink.name for sink in subject.sinks if sink.name not in held]:
        raise Broken(f"the state dict lacks {_some(lost)}")
    with tempfile.TemporaryDirectory() as folder:
        with _saving_only(subject.model):
            subject.model.save_pretrained(folder, state_dict=dict(held))  # it deletes from what it gets
        saved = [tensor for file in Path(folder).glob("*.safetensors") for tensor in load_file(file).values()]
    lost = [name for name, value in held.items() if not any(_equal(value, tensor) for tensor in saved)]
    if lost:
        raise Broken(f"save_pretrained leaves out {_some(lost)}")


@contextlib.contextmanager
def _saving_only(model: PreTrainedModel) -> Iterator[None]:
    """Save without a progress bar, and without what `save_pretrained` writes into the configuration."""
    own, shown = model.config, logging.is_progress_bar_enabled()
    model.config = copy.deepcopy(own)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        model.config = own
        if shown:
            logging.enable_progress_bar()


def _equal(value: Tensor, saved: Tensor) -> bool:
    return value.shape == saved.shape and torch.equal(value.detach().cpu(), saved)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
