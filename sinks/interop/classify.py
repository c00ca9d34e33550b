"""Which modules of a model are blocks, attention and norms of the residual stream: by the tensors of a short pass.

Names do not help: `post_attention_layernorm` reads the middle of the stream in Llama, the output of attention in
Gemma 2 and the input of the block in GPT-NeoX. With x a block's input and o what a submodule returned before:

    a norm that reads x          is the block's first norm, or a parallel feed-forward's
    a norm that reads x + c * o  reads the middle of the stream
    any other norm               reads the output of a sublayer, or is inside one: not a site

The same sums say what a sublayer adds: middle = x + c * o, then the block's output = middle + c * o; or both outputs
over x at once, where the sublayers are parallel.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from sinks.errors import UserError
from sinks.interop.adapter import Adapter, Gate
from sinks.interop.seam import AttentionCall, Seam, first_tensor

_TOKENS = 8


@dataclass(frozen=True)
class StreamNorm:
    """A norm that reads the residual stream.

    Args:
        module: the norm.
        offset: what its weight is added to for its gain, 0 or 1; None if the gain is something else.
        rms: whether it divides by the RMS, and does not center or add a bias.
        flat: whether it reads [B * T, D].
        pre: name of the gain that multiplies the stream before that division, the other one being `weight`.
        gate: that multiplies what the norm makes.
    """

    module: nn.Module
    offset: int | None
    rms: bool
    flat: bool
    pre: str | None = None
    gate: "NormGate | None" = None


@dataclass(frozen=True)
class NormGate:
    """A gate after a norm.

    Args:
        module: that holds the norm, and whose output is the norm's times the gate.
        values: module whose output is the gate [B, T, D] or [B, T, 1].
    """

    module: nn.Module
    values: nn.Module


@dataclass(frozen=True)
class AttentionParts:
    """An attention module and what surrounds its weights.

    Args:
        module: that computes q, k and v.
        calls_interface: whether it calls transformers' attention interface; else an adapter describes its attention.
        out_weight: of the output projection of the weighted values [D, H * dv]; None if that is no plain product.
        gate: of the output.
    """

    module: nn.Module
    calls_interface: bool
    out_weight: Callable[[], Tensor] | None
    gate: Gate | None


@dataclass(frozen=True)
class Update:
    """What a sublayer adds to the residual stream: factor * the output of a module.

    The factor is measured, as exactly as the dtype allows: about 1e-8 in float32, 1e-3 in bfloat16. One that close to 1
    is 1.

    Args:
        reader: a module whose input is what the update is added to; the block itself where that is the block's input.
        module: that makes the output.
        factor: of the output.
        dropped: whether dropout changes the output in training, so that the update is not known then.
    """

    reader: nn.Module
    module: nn.Module
    factor: float
    dropped: bool


@dataclass(frozen=True)
class BlockParts:
    """A block of the residual stream; `norms` and `updates` by site name, without what is not there."""

    module: nn.Module
    norms: Mapping[str, StreamNorm]
    updates: Mapping[str, Update]
    attention: AttentionParts | None


@dataclass(frozen=True)
class Parts:
    """What a model consists of."""

    seam: Seam
    blocks: list[BlockParts]
    head_norm: StreamNorm | None


@dataclass(frozen=True)
class _Event:
    """One call of a submodule."""

    module: nn.Module
    input: Tensor
    output: Tensor
    norm: StreamNorm | None
    weight: Callable[[], Tensor] | None


def parts_of(model: nn.Module, adapter: Adapter) -> Parts:
    """Run a short row through a model and see what its modules read.

    Raises:
        UserError: if its blocks, or the attention of a block that should have some, cannot be read.
    """
    blocks = list(adapter.blocks(model))
    switches = any(adapter.attention(block) is None for block in blocks)
    seam = Seam(_parent_of(model, blocks[0]), switches)
    probe = _Probe(model, blocks, seam, adapter)
    eagerly = torch.compiler.set_stance("force_eager")
    with eagerly, probe.watching(), evaluating(model), torch.no_grad():
        tokens = torch.arange(3, 3 + _TOKENS, device=next(model.parameters()).device)[None]
        adapter.run(model, tokens)
    return Parts(seam, probe.blocks, probe.head_norm)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode inside the `with` block, each module as before afterward."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _parent_of(model: nn.Module, block: nn.Module) -> nn.Module:
    """The module that runs the blocks: it owns the list of them."""
    names = {module: name for name, module in model.named_modules()}
    if block not in names:
        raise UserError(f"{type(block).__name__} is no module of {type(model).__name__}: let `blocks` return its own")
    owner = names[block].rpartition(".")[0].rpartition(".")[0]
    return model.get_submodule(owner)


class _Probe:
    def __init__(self, model: nn.Module, blocks: list[nn.Module], seam: Seam, adapter: Adapter) -> None:
        self.model, self.seam, self.adapter = model, seam, adapter
        self.blocks: list[BlockParts] = []
        self.head_norm: StreamNorm | None = None
        self._modules = blocks
        self._events: list[_Event] = []
        self._calls: list[tuple[nn.Module, Tensor]] = []  # and its weighted values [B, H, T, dv]
        self._tail: list[_Event] = []  # outside the blocks, from the first block on
        self._dropouts: list[tuple[int, Tensor]] = []  # number of events before, and what is dropped out
        self._stream: Tensor | None = None  # a block's input, then the last block's output

    @contextmanager
    def watching(self) -> Iterator[None]:
        inside = {m for block in self._modules for m in block.modules()}
        handles: list[Any] = []
        try:
            self.seam.open("probe")
            for block in self._modules:
                handles.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
            for module in inside - set(self._modules):
                handles.append(module.register_forward_hook(self._record, with_kwargs=True))
                self.seam.listen(module, lambda call, out, rows, module=module: self._attend(module, call))  # type: ignore[misc]
            for block in self._modules:
                described = self.adapter.attention(block)
                if described is not None:
                    handles.append(described.register_forward_pre_hook(self._describe, with_kwargs=True))
                handles.append(block.register_forward_hook(self._leave))
            for module in set(self.model.modules()) - inside:
                handles.append(module.register_forward_hook(self._after_blocks, with_kwargs=True))
            with _Dropouts(lambda x: self._dropouts.append((len(self._events), x.clone()))):
                yield
            self.head_norm = self._last_norm()
        finally:
            for handle in handles:
                handle.remove()
            for module in inside:
                self.seam.listen(module, None)
            self.seam.close("probe")

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs.get("hidden_states"), kwargs)
        if x is None or x.dim() != 3:
            raise UserError(
                f"{type(block).__name__} reads {None if x is None else tuple(x.shape)}, but a block must read the "
                "stream [B, T, D]: give huggingface_sites an Adapter with other `blocks`"
            )
        self._stream, self._events, self._calls, self._dropouts = x.clone(), [], [], []

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read, made = first_tensor(args, kwargs.get("hidden_states"), kwargs), first_tensor(output)
        if read is not None and made is not None and self._stream is not None:
            norm = _stream_norm(module, read, made, self._stream.shape[-1]) if _has_one(args, kwargs) else None
            self._events.append(_Event(module, read.clone(), made.clone(), norm, _matrix_of(module, read, made)))

    def _describe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._attend(module, self.adapter.call(module, args, kwargs))

    def _attend(self, module: nn.Module, call: AttentionCall) -> None:
        # At once: FSDP frees a learned sink when the block ends.
        self._calls.append((module, call.run()[0]))

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        after = first_tensor(output)
        updates = {} if after is None else self._updates(block, after)
        self.blocks.append(BlockParts(block, self._norms(block), updates, self._attention(block)))
        self._stream, self._events, self._calls = None if after is None else after.clone(), [], []

    def _after_blocks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read, made = first_tensor(args, kwargs), first_tensor(output)
        if self.blocks and self._stream is not None and read is not None and made is not None:
            norm = _stream_norm(module, read, made, self._stream.shape[-1]) if _has_one(args, kwargs) else None
            self._tail.append(_Event(module, read.clone(), made.clone(), norm, None))

    def _last_norm(self) -> StreamNorm | None:
        named, end = self.adapter.final_norm(self.model), self._stream
        for index, event in enumerate(self._tail):
            found = event.module is named if named is not None else end is not None and _equal(event.input, end)
            if event.norm is not None and found:
                return _with_gate(self._tail, index)
        return None

    def _norms(self, block: nn.Module) -> dict[str, StreamNorm]:
        named = self.adapter.norms(block)
        if named is not None:
            seen = {event.module: event for event in self._events}
            return {site: _named_norm(seen, module) for site, module in named.items()}
        assert self._stream is not None
        x = self._stream
        before: list[Tensor] = []
        found: dict[str, StreamNorm] = {}
        later = 0
        for index, event in enumerate(self._events):
            norm = _with_gate(self._events, index)
            if norm is not None and _equal(event.input, x) and "attention.norm" not in found:
                found["attention.norm"] = norm
            elif norm is not None and (_equal(event.input, x) or _added(event.input, x, before)):
                later += 1
                found["feed_forward.norm" if later == 1 else f"feed_forward.norm.{later}"] = norm
            before.append(event.output)
        return found

    def _updates(self, block: nn.Module, after: Tensor) -> dict[str, Update]:
        assert self._stream is not None
        x, outputs = self._stream, [event.output for event in self._events]
        middle = None
        for index, event in enumerate(self._events):
            if not _equal(event.input, x) and (middle := _added(event.input, x, outputs[:index])) is not None:
                break
        if middle is None:
            return self._parallel_updates(block, after)
        found = {"attention.update": self._update(block, *middle)}
        if (last := _added(after, event.input, outputs)) is not None:
            found["feed_forward.update"] = self._update(event.module, *last)
        return {site: update for site, update in found.items() if update is not None}

    def _parallel_updates(self, block: nn.Module, after: Tensor) -> dict[str, Update]:
        """Of the attention and one other output, if they are added to the block's input together."""
        assert self._stream is not None
        attending = {module for module, _ in self._calls}
        attention = next((event.output for event in self._events if event.module in attending), None)
        if attention is None or attention.numel() != after.numel():
            return {}
        for other in (event.output for event in reversed(self._events)):
            factors = (
                None
                if other.numel() != after.numel() or _equal(other, attention)
                else _factors(after, self._stream, [attention, other])
            )
            if factors is not None:
                updates = [self._update(block, o, c) for o, c in zip((attention, other), factors, strict=True)]
                if None not in updates:
                    return dict(zip(("attention.update", "feed_forward.update"), updates, strict=True))  # type: ignore[arg-type]
        return {}

    def _update(self, reader: nn.Module, output: Tensor, factor: float) -> Update | None:
        """With the last module that returns the output: the outermost, and after dropout. None if it runs twice."""
        modules = [event.module for event in self._events]
        for index, event in reversed(list(enumerate(self._events))):
            if _equal(event.output, output) and modules.count(event.module) == 1:
                dropped = any(at > index and _equal(x, output) for at, x in self._dropouts)
                return Update(reader, event.module, factor, dropped)
        return None

    def _attention(self, block: nn.Module) -> AttentionParts | None:
        if not self._calls:
            return None
        modules = {module for module, _ in self._calls}
        if len(self._calls) > 1:
            raise UserError(
                f"{type(block).__name__} calls attention {len(self._calls)} times, but once is what can be read: "
                "give huggingface_sites an Adapter with `call`"
            )
        (module,), values = modules, self._calls[0][1]
        described = self.adapter.attention(block) is not None
        out_weight, gate = self._output(module, values)
        if described and out_weight is None:
            raise UserError(
                f"what `call` describes is not what {type(module).__name__} computes: "
                "no output projection reads its result; check q, k, v and scale"
            )
        return AttentionParts(module, not described, out_weight, gate)

    def _output(self, module: nn.Module, values: Tensor) -> tuple[Callable[[], Tensor] | None, Gate | None]:
        """Weight of the projection that reads the weighted values, and the gate between."""
        parts = set(module.modules())
        events = [event for event in self._events if event.module in parts]
        result = next((event.output for event in events if event.module is module), None)
        # Submodules return before the module that holds them, so the last is the outermost; dropout is none of them.
        makers = [
            e for e in events
            if e.module is not module and result is not None
            and _equal(e.output, result) and not _equal(e.input, e.output)
        ]  # fmt: skip
        if not makers or makers[-1].weight is None:
            return None, self.adapter.gate(module)
        projection = makers[-1]
        weighted = values.transpose(1, 2).flatten(2)
        gate = self.adapter.gate(module)
        if gate is None and projection.input.numel() == weighted.numel() and _close(projection.input, weighted):
            return projection.weight, None
        gates = [gate] if gate is not None else _possible_gates(events)
        for candidate in gates:
            held = next((event.output for event in events if event.module is candidate.module), None)
            opened = None if held is None else _opening(candidate, held, values)
            if opened is not None and _close(projection.input, (values * opened).transpose(1, 2).flatten(2)):
                return projection.weight, candidate
        return None, None


class _Dropouts(TorchFunctionMode):
    """Reports what dropout reads, in evaluation too, where it changes nothing."""

    def __init__(self, report: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._report = report

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout and kwargs.get("p", 0.5) > 0:
            self._report(args[0])
        return function(*args, **kwargs)


def _has_one(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call has one tensor: a norm with a second input, e.g. a gate, is none of the stream."""
    return sum(isinstance(value, Tensor) for value in (*args, *kwargs.values())) == 1


def _named_norm(seen: Mapping[nn.Module, _Event], module: nn.Module) -> StreamNorm:
    if module not in seen:
        raise UserError(
            f"{type(module).__name__}, a norm that the adapter names, did not run: let `norms` leave it out"
        )
    return seen[module].norm or StreamNorm(module, None, rms=False, flat=seen[module].input.dim() == 2)


def _with_gate(events: list[_Event], index: int) -> StreamNorm | None:
    """The norm of an event, if it is one, with the gate by which a module that holds it multiplies its output."""
    event, later = events[index], events[index + 1 :]
    if event.norm is None:
        return None
    for outer in later:
        held = set(outer.module.modules()) - {outer.module}
        if event.module in held and _equal(outer.input, event.input):
            for inner in later:
                if inner.module in held and _is_product(outer.output, event.output, inner.output):
                    return replace(event.norm, gate=NormGate(outer.module, inner.module))
    return event.norm


def _is_product(total: Tensor, x: Tensor, gate: Tensor) -> bool:
    """Whether a tensor is another [B, T, D] times a gate [B, T, D] or [B, T, 1]."""
    return gate.shape[:-1] == x.shape[:-1] and gate.shape[-1] in (1, x.shape[-1]) and _equal(total, x * gate)


def _stream_norm(module: nn.Module, read: Tensor, made: Tensor, width: int) -> StreamNorm | None:
    """The module as a norm of the stream's width; None if it is none."""
    shapes = {tuple(p.shape) for p in module.parameters(recurse=False)}
    leaf = next(module.children(), None) is None
    if not leaf or shapes - {(width,)} or read.shape != made.shape or read.shape[-1] != width or _equal(read, made):
        return None
    signs = torch.ones(1, 1, width, dtype=read.dtype, device=read.device)
    signs[..., 1::2] = -1
    # Large, so that eps is nothing; of mean zero, so that centering changes nothing.
    up, down, ones, minus_ones = (module.forward(100 * x) for x in (signs, -signs, signs.abs(), -signs.abs()))
    gain = ((up - down) * signs / 2).flatten()
    rms = _close((ones - minus_ones).flatten() / 2, gain) and _close((up + down) / 2 + gain, gain)
    weight = getattr(module, "weight", None)
    stored = torch.zeros_like(gain) if weight is None else weight
    pre = _pre_gain(module, signs)
    offset = next((o for o in (0, 1) if _close(stored + o, gain)), None) if pre is None else 0
    return StreamNorm(module, offset, rms, read.dim() == 2, pre)


def _pre_gain(module: nn.Module, signs: Tensor) -> str | None:
    """Name of a parameter p with which the module computes weight * p x / rms(p x); None if there is none."""
    found = dict(module.named_parameters(recurse=False))
    weight = found.pop("weight", None)
    if weight is None or len(found) != 1:
        return None
    ((name, pre),) = found.items()
    return name if _close(module.forward(100 * signs / pre), (signs * weight)) else None


def _matrix_of(module: nn.Module, read: Tensor, made: Tensor) -> Callable[[], Tensor] | None:
    """Weight [out, in] of a module that computes x W^T + b; GPT-2's Conv1D keeps it transposed."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(module, nn.Linear | Conv1D) or type(weight) is not nn.Parameter or weight.dtype != read.dtype:
        return None
    product = made if bias is None else made - bias
    if weight.shape[1] == read.shape[-1] and _close(read @ weight.T, product):
        return lambda: module.weight
    if weight.shape[0] == read.shape[-1] and _close(read @ weight, product):
        return lambda: module.weight.T
    return None


def _possible_gates(events: list[_Event]) -> list[Gate]:
    reads = (_second_half, _by_channel, _by_head)
    # A gate that starts at one, so that it leaves a trained model as it is, is twice a sigmoid.
    return [Gate(event.module, read, limit) for event in events for read in reads for limit in (1.0, 2.0)]


def _second_half(output: Tensor, heads: int, width: int) -> Tensor:
    """Of a query projection whose heads hold query and gate: [B, T, H * 2 * dv] -> [B, H, T, dv]."""
    return output.view(*output.shape[:2], heads, 2 * width)[..., width:].transpose(1, 2)


def _by_channel(output: Tensor, heads: int, width: int) -> Tensor:
    return output.view(*output.shape[:2], heads, width).transpose(1, 2)


def _by_head(output: Tensor, heads: int, width: int) -> Tensor:
    return output.view(*output.shape[:2], heads).transpose(1, 2)


def _opening(gate: Gate, output: Tensor, values: Tensor) -> Tensor | None:
    """Values of the gate [B, H, T, 1 or dv]; None if the output cannot hold it."""
    try:
        opened = gate.values(output, values.shape[1], values.shape[3])
    except RuntimeError:
        return None
    return opened if opened.dim() == 4 else opened.unsqueeze(-1)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and a.shape[-1] == b.shape[-1] and torch.equal(a.reshape(b.shape), b)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel():
        return False
    return bool((a.reshape(b.shape).float() - b.float()).abs().max() <= _tolerance(b) * b.float().abs().max())


def _tolerance(x: Tensor) -> float:
    return max(1e-4, 4 * torch.finfo(x.dtype).eps)


def _added(total: Tensor, x: Tensor, outputs: list[Tensor]) -> tuple[Tensor, float] | None:
    """The last of the outputs o, and the number c, with which a tensor is x + c * o; None if there is none."""
    if total.numel() != x.numel() or total.shape[-1] != x.shape[-1]:
        return None
    for output in reversed(outputs):
        if output.numel() == x.numel() and (factors := _factors(total, x, [output])) is not None:
            return output, factors[0]
    return None


def _factors(total: Tensor, x: Tensor, outputs: list[Tensor]) -> list[float] | None:
    """The numbers c with which a tensor is x + c_1 * o_1 + ..., up to rounding of each value; None if there are none.

    Each value is weighted by its size, or the massive ones would hide all others.
    """
    start, end = x.double().flatten(), total.double().flatten()
    terms = torch.stack([output.double().flatten() for output in outputs], dim=1)
    size = (start.abs() + end.abs()).clamp_min(1e-300)
    weighted = terms / size[:, None]
    factors = torch.linalg.lstsq(weighted.cpu(), ((end - start) / size)[:, None].cpu()).solution.to(terms.device)
    eps = torch.finfo(total.dtype).eps
    factors = torch.where((factors - 1).abs() <= eps, torch.ones_like(factors), factors)
    parts = terms * factors.T
    limit = 4 * eps * (start.abs() + parts.abs().sum(1))
    if not bool(((end - start - parts.sum(1)).abs() <= limit).all()) or not bool(factors.isfinite().all()):
        return None
    # A term within the rounding would fit whatever it is.
    return factors.flatten().tolist() if bool(((parts.abs() > limit[:, None]).sum(0) > 8).all()) else None
