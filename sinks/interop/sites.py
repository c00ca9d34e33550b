"""The sites of a transformers causal LM, read on its own unedited code."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinks.errors import UserError
from sinks.interop.adapter import Adapter
from sinks.interop.classify import AttentionParts, BlockParts, NormGate, StreamNorm, Update, parts_of
from sinks.interop.seam import AttentionCall, Seam, first_tensor
from sinks.observe import AttentionRecord, NormRecord, Site, UpdateRecord
from sinks.observe.by_document import DocumentSite, check_document_start
from sinks.observe.key_numbers import KeyNumbers
from sinks.observe.sites import ROW_STATISTICS, Kind, Listener, row_statistics
from sinks.stats.functional import gate_gain


class _Hooked:
    """A site that reads by hooks, registered while somebody listens."""

    def __init__(self, kind: Kind, name: str, seam: Seam) -> None:
        self.kind, self.name, self._seam = kind, name, seam
        self._handles: list[Any] = []

    @property
    def may_skip(self) -> bool:
        """Whether a pass may go unread, on one rank and not on another."""
        return self._seam.skip_unknown_documents

    def listen(self, listener: Listener | None, fields: Collection[str] = ()) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if listener is None:
            self._seam.close(self.name)
        else:
            self._seam.open(self.name)
            self._handles = self._hooks(listener, fields)

    def _hooks(self, listener: Listener, fields: Collection[str]) -> list[Any]:
        raise NotImplementedError

    def _report(self, record: NormRecord | UpdateRecord, listener: Listener) -> None:
        """Pass on a record of whole rows, or those of the documents of packed rows."""
        packed = self._seam.packed
        for part in [record] if packed is None else record.of_documents(packed):
            listener(part)


class _NormSite(_Hooked):
    def __init__(self, name: str, seam: Seam, norm: StreamNorm, block: nn.Module) -> None:
        super().__init__("norm", name, seam)
        self._norm, self._block = norm, block
        self._shape: torch.Size | None = None  # of the block's input, for a norm that reads [B * T, D]

    def _hooks(self, listener: Listener, fields: Collection[str]) -> list[Any]:
        @torch.no_grad()
        def see(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            if self._seam.reading:
                self._take(self._record(_first(args, kwargs), output.detach()), listener)

        handles = [self._norm.module.register_forward_hook(see, with_kwargs=True)]
        if self._norm.flat:
            handles.append(self._block.register_forward_pre_hook(self._keep_shape, with_kwargs=True))
        return handles

    def _take(self, record: NormRecord, listener: Listener) -> None:
        self._report(record, listener)

    def _keep_shape(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self._shape = _first(args, kwargs).shape

    def _record(self, x: Tensor, y: Tensor) -> NormRecord:
        if self._norm.flat:
            assert self._shape is not None
            x, y = x.view(self._shape), y.view(self._shape)
        weight, pre = _weight(self._norm, x), _pre(self._norm)
        if not self._norm.rms:
            return NormRecord(input=x, output=y, gain=weight)
        if weight is None or pre is None:
            return NormRecord(input=x, output=y, gain=weight, divided=x, weight=weight, normalized=y)
        return NormRecord(input=x, output=y, gain=weight * pre, divided=pre * x, weight=weight, normalized=y)


class _GatedNormSite(_NormSite):
    """A norm and the gate after it, read when the module that holds both returns."""

    def __init__(self, name: str, seam: Seam, norm: StreamNorm, gate: NormGate, block: nn.Module) -> None:
        super().__init__(name, seam, norm, block)
        self._gate = gate
        self._values: Tensor | None = None
        self._found: NormRecord | None = None

    def _take(self, record: NormRecord, listener: Listener) -> None:
        self._found = record

    def _hooks(self, listener: Listener, fields: Collection[str]) -> list[Any]:
        @torch.no_grad()
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            record, gate = self._found, self._values
            self._found = self._values = None
            if record is not None:
                y = output.detach().view(record.input.shape)
                self._report(replace(record, output=y, gate=gate, normed=record.output), listener)

        return [
            *super()._hooks(listener, fields),
            self._gate.values.register_forward_hook(self._keep_values),
            self._gate.module.register_forward_hook(see),
        ]

    def _keep_values(self, gate: nn.Module, args: Any, output: Tensor) -> None:
        self._values = output.detach()


def _norm_site(name: str, seam: Seam, norm: StreamNorm, block: nn.Module) -> _NormSite:
    if norm.gate is None:
        return _NormSite(name, seam, norm, block)
    return _GatedNormSite(name, seam, norm, norm.gate, block)


class _ResidualSite(_Hooked):
    """The stream where no norm reads it, at a block's input."""

    def __init__(self, name: str, seam: Seam, block: nn.Module) -> None:
        super().__init__("norm", name, seam)
        self._block = block

    def _hooks(self, listener: Listener, fields: Collection[str]) -> list[Any]:
        @torch.no_grad()
        def see(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._seam.reading:
                self._report(NormRecord(input=_first(args, kwargs), output=None), listener)

        return [self._block.register_forward_pre_hook(see, with_kwargs=True)]


class _UpdateSite(_Hooked):
    """What a sublayer adds: its module's own output, because a difference of the stream would be rounded."""

    def __init__(self, name: str, seam: Seam, update: Update, block: nn.Module) -> None:
        super().__init__("update", name, seam)
        self._update, self._block = update, block
        self._shape: torch.Size | None = None  # of the block's input, for modules that read [B * T, D]
        self._residual: Tensor | None = None

    def _hooks(self, listener: Listener, fields: Collection[str]) -> list[Any]:
        @torch.no_grad()
        def see(module: nn.Module, args: Any, output: Any) -> None:
            residual, self._residual = self._residual, None
            if residual is not None and self._seam.reading and not (self._update.dropped and module.training):
                made, factor = _first(output, {}).reshape(residual.shape), self._update.factor
                self._report(UpdateRecord(residual, made if factor == 1 else factor * made), listener)

        return [
            self._block.register_forward_pre_hook(self._keep_shape, with_kwargs=True),
            self._update.reader.register_forward_pre_hook(self._keep_residual, with_kwargs=True),
            self._update.module.register_forward_hook(see),
        ]

    def _keep_shape(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self._shape = _first(args, kwargs).shape

    def _keep_residual(self, reader: nn.Module, args: Any, kwargs: Any) -> None:
        assert self._shape is not None
        self._residual = _first(args, kwargs).view(self._shape)


class _AttentionSite(_Hooked):
    def __init__(self, name: str, seam: Seam, parts: AttentionParts, adapter: Adapter) -> None:
        super().__init__("attention", name, seam)
        self._parts, self._adapter = parts, adapter
        # Of the current pass, what came first: models compute the gate before their attention, or after it.
        self._gate_output: Tensor | None = None
        self._read: tuple[AttentionCall, Tensor, dict[str, Tensor]] | None = None
        self._numbers, self._wants_gain = KeyNumbers((), False), False

    def listen(self, listener: Listener | None, fields: Collection[str] = ()) -> None:
        self._numbers = KeyNumbers(fields, self._parts.out_weight is not None)
        self._wants_gain = "gate_gain" in fields
        self._gate_output = self._read = None
        super().listen(listener, fields)
        if self._parts.calls_interface:
            see = listener and partial(self._see, listener)
            numbers = self._key_numbers if self._numbers else None
            self._seam.listen(self._parts.module, see, row_statistics(fields), numbers)

    def _key_numbers(self, call: AttentionCall) -> Tensor:
        weight = None if self._parts.out_weight is None else self._parts.out_weight()
        return self._numbers.of(call.v, call.q.shape[1], weight)

    def _hooks(self, listener: Listener, fields: Collection[str]) -> list[Any]:
        handles = []
        if self._parts.gate is not None:

            @torch.no_grad()
            def keep(module: nn.Module, args: Any, output: Tensor) -> None:
                if self._seam.reading:
                    self._gate_output = output.detach()
                    self._report_attention(listener)

            handles.append(self._parts.gate.module.register_forward_hook(keep))
        if not self._parts.calls_interface:

            @torch.no_grad()
            def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                if not self._seam.reading:
                    return
                call = self._adapter.call(module, args, kwargs)
                numbers = self._key_numbers if self._numbers else None
                self._see(listener, call, *call.run(row_statistics(fields), numbers))

            handles.append(self._parts.module.register_forward_hook(see, with_kwargs=True))
        return handles

    def _see(self, listener: Listener, call: AttentionCall, out: Tensor, rows: dict[str, Tensor]) -> None:
        self._read = call, out.detach(), dict(rows)
        self._report_attention(listener)

    def _report_attention(self, listener: Listener) -> None:
        """Once all is known, pass on the record of whole rows, or those of the documents of packed rows."""
        if self._read is None or (self._parts.gate is not None and self._gate_output is None):
            return
        call, out, tensors = self._read
        if self._parts.gate is not None and self._gate_output is not None:
            gate = self._parts.gate.values(self._gate_output, call.q.shape[1], call.v.shape[3])
            tensors["gate"] = gate
            if self._wants_gain:
                tensors["gate_gain"] = gate_gain(gate, out)
        self._gate_output = self._read = None
        split = [tensors] if call.documents is None else call.documents.split(tensors, dim=2)
        for part, its in zip(call.detached().of_documents(), split, strict=True):
            listener(self._record(part, its))

    def _record(self, call: AttentionCall, tensors: dict[str, Tensor]) -> AttentionRecord:
        out_weight = self._parts.out_weight
        found = self._numbers.fields(tensors["numbers"], tensors["weighted_sum"]) if self._numbers else {}
        return AttentionRecord(
            **found,  # type: ignore[arg-type]
            q=call.q,
            k=call.k,
            v=call.v,
            gate=tensors.get("gate"),
            **{name: tensors.get(at) for name, at in ROW_STATISTICS.items()},  # type: ignore[arg-type]
            learned_sinks=0 if call.sink is None else 1,
            out_weight=None if out_weight is None else out_weight().detach(),
            gate_gain=tensors.get("gate_gain"),
            masses=call.key_mass,
            within=call.first_token_within,
        )


def huggingface_sites(
    model: nn.Module,
    adapter: Adapter | None = None,
    document_start: int | None = None,
    skip_unknown_documents: bool = False,
) -> list[Site]:
    """The sites of a transformers causal LM, of kinds "norm", "attention" and "update".

    They are named as in the suite's own decoder. `blocks.{i}.attention.norm` reads the input of a block,
    `blocks.{i}.feed_forward.norm` the middle of the stream, or the block's input too where the two sublayers are
    parallel; `head.norm` reads the end. `blocks.{i}.residual.in` is the input of a block that no norm reads (OLMo 2).
    The attention of layers that have none is absent.

    `blocks.{i}.attention.update` and `blocks.{i}.feed_forward.update` read what a sublayer adds, and to what: the
    output of its last module, times the factor that the model gives it. One that is not found is absent. One after
    which a model drops values out without a module for it (OPT) reports nothing in training.

    Which module is which is found in one pass over a row of 8 tokens. The model's own attention implementation runs
    while nobody listens.

    Args:
        model: a transformers causal LM, on its device; or any model that an adapter describes.
        adapter: what cannot be found by itself; see `Adapter`.
        document_start: id of the first token of every document, where a row holds several and attention runs across
            them: each is then read on its own, as `by_document` says. Rows that are packed by `position_ids` need none.
        skip_unknown_documents: whether a pass over rows that are packed without showing where documents start, by a
            mask or by `cu_seq_lens_q` alone, is left unread with a warning, as in training; otherwise it is an error.

    Raises:
        UserError: if the model is none, or does not call transformers' attention interface.
    """
    if adapter is None and not isinstance(model, PreTrainedModel):
        raise UserError(f"{type(model).__name__} is no transformers model: use sites_of, or give an Adapter")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UserError(f"{type(model).__name__} has an encoder, but causal language models are what is read: give one")
    parts = parts_of(model, adapter or Adapter())
    require_attention(model, parts.blocks)
    seam, sites = parts.seam, list[Site]()
    seam.skip_unknown_documents = skip_unknown_documents
    for index, block in enumerate(parts.blocks):
        sites += _block_sites(f"blocks.{index}", block, seam, adapter or Adapter())
    if parts.head_norm is not None:
        sites.append(_norm_site("head.norm", seam, parts.head_norm, parts.blocks[-1].module))
    if document_start is None:
        return sites
    seam.document_start = check_document_start(document_start)
    return [DocumentSite(site, seam) for site in sites]


def _block_sites(name: str, block: BlockParts, seam: Seam, adapter: Adapter) -> Iterator[Site]:
    """In the order of the suite's own."""
    norms: dict[str, Site] = {
        at: _norm_site(f"{name}.{at}", seam, norm, block.module) for at, norm in block.norms.items()
    }
    updates = {at: _UpdateSite(f"{name}.{at}", seam, update, block.module) for at, update in block.updates.items()}
    yield norms.pop("attention.norm", _ResidualSite(f"{name}.residual.in", seam, block.module))
    if block.attention is not None:
        yield _AttentionSite(f"{name}.attention", seam, block.attention, adapter)
    if "attention.update" in updates:
        yield updates["attention.update"]
    yield from norms.values()
    if "feed_forward.update" in updates:
        yield updates["feed_forward.update"]


def require_attention(model: nn.Module, blocks: list[BlockParts]) -> None:
    """Check that the blocks whose layers attend have been seen to do so.

    Raises:
        UserError: naming how many have not.
    """
    config = getattr(model, "config", None)
    if config is None or any(block.attention is not None and not block.attention.calls_interface for block in blocks):
        return
    types = getattr(config.get_text_config(decoder=True), "layer_types", None) or ["full_attention"] * len(blocks)
    expected = [at for at, kind in enumerate(types) if "attention" in kind and "linear" not in kind]
    found = [at for at, block in enumerate(blocks) if block.attention is not None]
    if found != expected:
        raise UserError(
            f"{len(found)} of {len(expected)} attention layers of {type(model).__name__} call transformers' attention "
            "interface, but all must do so to be read: give huggingface_sites an Adapter with `attention` and `call`"
        )


def _first(args: Any, kwargs: Any) -> Tensor:
    x = first_tensor(args, kwargs.get("hidden_states"), kwargs)
    assert x is not None
    return x.detach()


def _weight(norm: StreamNorm, x: Tensor) -> Tensor | None:
    if norm.offset is None:
        return None
    weight = getattr(norm.module, "weight", None)
    return x.new_ones(x.shape[-1]) if weight is None else weight.detach() + norm.offset


def _pre(norm: StreamNorm) -> Tensor | None:
    return None if norm.pre is None else getattr(norm.module, norm.pre).detach()
