"""A transformers model with large sinks, a massive first token and short windows, which nobody's stack may drop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinks.errors import UserError
from sinks.interop.classify import evaluating
from sinks.interop.seam import AttentionCall, configurations, implementation

ROWS, LENGTH = 2, 12
WINDOW = 4  # shorter than a row, so that a row shows whether it is applied
OUTLIER = 100.0  # factor of the first token's embedding, which no other row has


@dataclass(frozen=True)
class Sink:
    """The learned logits of one attention layer.

    Args:
        name: of the parameter or buffer; where it is none, what names its attention module.
        source: tensor they are stored in; a leaf.
        received: what the attention function gets of it [H].
        level: per head, the mean over rows of the largest logit of a key [H].
    """

    name: str
    source: Tensor
    received: Tensor
    level: Tensor

    @torch.no_grad()
    def plant(self) -> None:
        """Make them as large as the largest logit: the sink then takes a part of every row that is not negligible."""
        shared = self.received.untyped_storage().data_ptr() == self.source.untyped_storage().data_ptr()
        (self.received.detach() if shared else self.source).copy_(self.level)


def rows_of(model: PreTrainedModel) -> Tensor:
    """Random rows [ROWS, LENGTH] of token ids, all with the same first one, which is nowhere else."""
    first = model.get_input_embeddings().num_embeddings // 2
    rows = torch.randint(0, first, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = first
    return rows.to(model.device)


def sinks_of(model: PreTrainedModel, tokens: Tensor) -> list[Sink]:
    """The sinks that a model hands to its attention function, found by a function that takes note of them.

    Raises:
        UserError: if the model does not call transformers' attention interface.
    """
    found, called = list[Sink](), set[str]()
    names = {module: name for name, module in model.named_modules()}
    stored = {tensor.untyped_storage().data_ptr(): name for name, tensor in _named_tensors(model).items()}

    def attend(
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        out, rows = AttentionCall(q, k, v, scaling, sliding_window, softcap, s_aux).run(["max_logit"])
        called.add(names[module])
        if s_aux is not None:
            source = _source(s_aux)
            name = stored.get(source.untyped_storage().data_ptr(), f"a tensor of {names[module]}")
            found.append(Sink(name, source, s_aux, rows["max_logit"].detach().mean((0, 2))))
        return out.transpose(1, 2), None

    with _registered(attend) as name, implementation(model, "eager"), torch.enable_grad():
        model.set_attn_implementation(name)  # without effect on a model that does not call the interface
        model(input_ids=tokens, use_cache=False)
    if not called:
        raise UserError(
            f"{type(model).__name__} does not call transformers' attention interface, by which sinks are found: "
            "give a model that does"
        )
    return found


@contextmanager
def _registered(function: Callable[..., Any]) -> Iterator[str]:
    """Register an attention function inside the `with` block; it gets no mask."""
    name = "sinks_probe"
    ALL_ATTENTION_FUNCTIONS[name] = function
    try:
        yield name
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def _source(tensor: Tensor) -> Tensor:
    """The leaf that a tensor is computed from by a chain of functions of one argument, as a cast or a slice is."""
    node: Any = tensor.grad_fn
    while node is not None:
        if hasattr(node, "variable"):
            return node.variable
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
    return tensor


@contextmanager
def planted(model: PreTrainedModel, tokens: Tensor) -> Iterator[list[Sink] | ValueError]:
    """Plant all three inside the `with` block; weights, windows and modes are as before afterward.

    Yields:
        The sinks; or why they could not be found.
    """
    first = tokens[0, 0]

    def enlarge(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.where((args[0] == first).unsqueeze(-1), OUTLIER * output, output)

    handle = model.get_input_embeddings().register_forward_hook(enlarge)
    try:
        with evaluating(model), windows(model, WINDOW):
            try:
                sinks = sinks_of(model, tokens)
            except ValueError as error:  # of sink_kernels, or of the user
                yield error
                return
            with _kept(sinks):
                for sink in sinks:
                    sink.plant()
                yield sinks
    finally:
        handle.remove()


@contextmanager
def other_sinks(sinks: list[Sink]) -> Iterator[None]:
    """Much smaller sinks inside the `with` block."""
    with _kept(sinks), torch.no_grad():
        for source in {id(sink.source): sink.source for sink in sinks}.values():
            source.sub_(10.0)
        yield


@contextmanager
def _kept(sinks: list[Sink]) -> Iterator[None]:
    """Put the sinks' present values back after the `with` block."""
    own = [(sink.source, sink.source.detach().clone()) for sink in sinks]
    try:
        yield
    finally:
        with torch.no_grad():
            for source, before in own:
                source.copy_(before)


@contextmanager
def windows(model: PreTrainedModel, size: int) -> Iterator[None]:
    """Give every sliding window of a model another size inside the `with` block."""
    holders = [*configurations(model), *model.modules()]
    own = [
        (holder, holder.sliding_window) for holder in holders if type(getattr(holder, "sliding_window", None)) is int
    ]
    try:
        for holder, _ in own:
            holder.sliding_window = size
        yield
    finally:
        for holder, before in own:
            holder.sliding_window = before
