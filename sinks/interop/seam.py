"""Attention of a transformers model through `sink_kernels`, on the model's own, unedited code.

transformers lets a model's attention modules call any registered function with q, k and v, after projections, norms and
positions. "sinks" is such a function. A `Seam` switches a model to it while somebody listens, and back afterward.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from sink_kernels import attention, key_mass
from sink_kernels.options import Options
from sink_kernels.reference import causal_logits, normalize, repeat_heads, sink_column
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface

from sinks.errors import UserError
from sinks.observe.documents import Documents, documents_of_positions

NAME = "sinks"
IMPLEMENTATION = "_attn_implementation"  # of a configuration; transformers has no public name to read it
Listener = Callable[["AttentionCall", dict[str, Tensor]], None]
Edit = Callable[["AttentionCall", Tensor], Tensor]  # of a call and its output [B, H, T, dv]; what to return instead


@dataclass(frozen=True)
class AttentionCall:
    """Causal attention as a model asks for it.

    Args:
        q: queries [B, H, T, d], positions applied.
        k: keys [B, Hkv, T, d], positions applied.
        v: values [B, Hkv, T, dv]; dv may differ from d, as in multi-head latent attention.
        scale: factor of q . k; d ** -0.5 by default.
        window: number of keys a query sees, including its own; all by default.
        softcap: limit of the scaled logits.
        sink: learned logit per head [H].
        documents: of packed rows, which do not see one another.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sink: Tensor | None = None
    documents: Documents | None = None

    @property
    def _options(self) -> dict[str, Any]:
        scale = self.q.shape[-1] ** -0.5 if self.scale is None else self.scale
        return {
            "normalizer": "softmax" if self.sink is None else "learnable_sink",
            "scale": scale, "window": self.window, "softcap": self.softcap,
        }  # fmt: skip

    def weights(self) -> Tensor:
        """The weights of whole rows on their keys [B, H, T, T], in float32 or wider."""
        assert self.documents is None, "rows are whole"
        options = Options(**self._options)
        wide = torch.promote_types(self.q.dtype, torch.float32)
        keys = repeat_heads(self.k.to(wide), self.q.shape[1] // self.k.shape[1])
        logits = causal_logits(self.q.to(wide), keys, options)
        sink = None if self.sink is None else sink_column(self.sink, len(self.sink), wide, self.q.device)
        return normalize(logits, sink, options)

    def run(
        self, stats: Collection[str] = (), numbers: Callable[["AttentionCall"], Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attention.

        Args:
            stats: names of statistics of `sink_kernels.attention`.
            numbers: makes one number per key and query head [B, H, T], which the weights sum up.

        Returns:
            Output [B, H, T, dv], and the statistics [B, H, T] by name; also `numbers` and their `weighted_sum`.
        """
        if self.documents is not None:
            parts = [part.run(stats, numbers) for part in self.of_documents()]
            rows = {name: self.documents.join([found[name] for _, found in parts], dim=2) for name in parts[0][1]}
            return self.documents.join([out for out, _ in parts], dim=2), rows
        width = max(self.q.shape[-1], self.v.shape[-1])
        q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (self.q, self.k, self.v))
        sink = None if self.sink is None else self.sink.float()
        if not stats:
            return attention(q, k, v, sink=sink, **self._options)[..., : self.v.shape[-1]], {}
        with torch.no_grad():
            made = None if numbers is None else numbers(self)
        out, rows = attention(q, k, v, sink=sink, stats=tuple(stats), numbers=made, **self._options)  # type: ignore[arg-type]
        return out[..., : self.v.shape[-1]], rows if made is None else rows | {"numbers": made}

    def of_documents(self) -> "list[AttentionCall]":
        """The documents of packed rows, those of one length in one call; whole rows as they are."""
        if self.documents is None:
            return [self]
        parts = self.documents.split({"q": self.q, "k": self.k, "v": self.v}, dim=2)
        return [replace(self, documents=None, **part) for part in parts]  # type: ignore[arg-type]

    def detached(self) -> "AttentionCall":
        """The same without gradients."""
        sink = None if self.sink is None else self.sink.detach()
        return replace(self, q=self.q.detach(), k=self.k.detach(), v=self.v.detach(), sink=sink)

    def key_mass(self, q: Tensor, k: Tensor, lse: Tensor) -> Tensor:
        """Mass each key receives from all queries [B, H, T] float32, with the options of this call."""
        return key_mass(q, k, lse, **self._options)

    def first_token_within(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of each query on the first token and lse, both [B, H, T], with the options of this call."""
        _, rows = replace(self, q=q, k=k, v=v).run(("first_key_mass", "lse"))
        return rows["first_key_mass"], rows["lse"]


@dataclass(frozen=True)
class _Listening:
    stats: tuple[str, ...]
    numbers: Callable[[AttentionCall], Tensor] | None
    listener: Listener


# Module that calls the function -> who listens there. Of all models, because transformers registers one function.
_listening: WeakKeyDictionary[nn.Module, _Listening] = WeakKeyDictionary()
_edits: WeakKeyDictionary[nn.Module, Edit] = WeakKeyDictionary()  # the same of who edits what it gives
# Positions of packed rows -> their documents. By the tensor, which the model passes on to its attention, and again when
# a checkpointed block is computed again.
_documents: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def sinks_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function `sinks`: causal, on whole rows, or within each document of rows packed by positions.

    Returns:
        Output [B, T, H, dv]; no weights.

    Raises:
        UserError: on a mask, a cache, dropout, attention that is not causal, or packed rows whose documents are not
            known here, or see one another in the model's own attention.
    """
    where = f"{type(module).__name__} {getattr(module, 'layer_idx', '')}".strip()
    if attention_mask is not None:
        raise UserError(f"{where} got a mask {tuple(attention_mask.shape)}, but only causal rows are read: give none")
    documents = None if position_ids is None else _documents.get(position_ids)
    if cu_seq_lens_q is not None and documents is None:
        raise UserError(
            f"{where} got packed rows (cu_seq_lens_q) without positions: give position_ids that start again at 0 with "
            "every document"
        )
    if _Pass.current is not None:
        _Pass.current.require_separate(where, documents)
    if query.shape[2] != key.shape[2]:
        raise UserError(
            f"{where} got {query.shape[2]} queries and {key.shape[2]} keys, but only whole rows are read: "
            "run them without a cache, and do not generate"
        )
    if dropout > 0:
        raise UserError(f"{where} drops {dropout:g} of its weights, but must drop none: set attention dropout to 0")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UserError(f"{where} is not causal, but only causal attention is read: give a causal language model")
    call = AttentionCall(query, key, value, scaling, sliding_window, softcap, s_aux, documents)
    if _Pass.current is not None:
        _Pass.current.windows_used.add(sliding_window)
    listening = None if _Pass.current is None else _listening.get(module)
    out, rows = call.run() if listening is None else call.run(listening.stats, listening.numbers)
    if listening is not None:
        with torch.no_grad():
            listening.listener(call, rows)
    edit = None if _Pass.current is None else _edits.get(module)
    if edit is not None:
        out = edit(call, out)
    return out.transpose(1, 2).contiguous(), None


def causal_or_error(
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    q_length: int | None = None,
    kv_length: int | None = None,
    config: Any = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> None:
    """The mask function `sinks`: no mask, because the attention function is causal and keeps documents apart itself.

    transformers does not allow it to skip the mask where the model wants one of its own (then `use_vmap` is true), and
    where positions show that rows are packed.

    Raises:
        UserError: on padding, a cache, or anything else that is neither a whole causal row nor packed by positions.
    """
    require_no_padding(attention_mask)
    if q_length != kv_length:
        raise UserError(
            f"the model got {q_length} queries and {kv_length} keys, but only whole rows are read: "
            "run them without a cache, and do not generate"
        )
    if not allow_is_causal_skip and not use_vmap and _Pass.current is not None and _Pass.current.packed is not None:
        _Pass.current.separated = True
    elif not allow_is_causal_skip:
        raise UserError(
            f"{type(config).__name__} asks for a mask of its own, or the rows are packed, but only whole causal rows "
            "are read: give one text a row, or huggingface_sites an Adapter with `attention` and `call`"
        )
    if _Pass.current is not None and local_size is not None and kv_length is not None and local_size < kv_length:
        _Pass.current.windows_masked.add(local_size)


AttentionInterface.register(NAME, sinks_attention)
AttentionMaskInterface.register(NAME, causal_or_error)


class _Pass:
    """One forward pass through the seam.

    Args:
        packed: documents of packed rows, None for whole rows.

    Attributes:
        separated: whether the model asked for masks that keep the documents apart.
        windows_masked, windows_used: windows that were asked for, by masks and in calls.
    """

    current: "_Pass | None" = None

    def __init__(self, packed: Documents | None) -> None:
        self.packed, self.separated = packed, False
        self.windows_masked: set[int] = set()
        self.windows_used: set[int | None] = set()

    def require_separate(self, where: str, documents: Documents | None) -> None:
        """Check that packed documents do not see one another in the model's own attention, nor in the seam's."""
        if self.packed is not None and not self.separated:
            raise UserError(
                f"position_ids start again, but {where} lets documents see one another: give no attention_mask and "
                "use_cache=False; if that is so already, the model cannot be packed by positions"
            )
        if documents is not self.packed:
            raise UserError(f"position_ids start again, but {where} does not get them: give one text a row")

    def finish(self) -> None:
        if lost := self.windows_masked - self.windows_used:
            raise UserError(
                f"the model limits attention to {min(lost)} tokens by a mask alone, e.g. in chunks, which cannot be "
                f"read: give rows of at most {min(lost)} tokens"
            )


class Seam:
    """Switches a model to the attention function `sinks` while a site is open.

    The switch happens at the start of a forward pass. With gradients it lasts until the backward pass ends, because
    checkpointed blocks are computed again there and must run what they ran before. They are not read again: `reading`
    is true inside a forward pass only.

    Args:
        stack: the module that runs the blocks, once per forward pass; it gets `position_ids`.
        switches: whether its attention calls transformers' interface; otherwise the implementation is left alone.

    Attributes:
        document_start: id of the first token of every document, where attention runs across documents.
    """

    document_start: int | None = None

    def __init__(self, stack: nn.Module, switches: bool = True) -> None:
        self.stack, self._switches = stack, switches
        self._documents: Documents | None = None
        self._open: set[str] = set()
        self._own: list[tuple[Any, str | None]] = []  # configurations, and the implementations they had
        self._handles: list[Any] = []
        self._backward_pending = False
        self._pass: _Pass | None = None

    @property
    def reading(self) -> bool:
        """Whether the model is in a forward pass that is to be read."""
        return self._pass is not None and self._pass is _Pass.current

    @property
    def packed(self) -> Documents | None:
        """The documents of rows that are packed by positions; None for whole rows."""
        return None if self._pass is None else self._pass.packed

    @property
    def documents(self) -> Documents:
        """The documents of whole rows, by `document_start`."""
        assert self._documents is not None, "document_start is given"
        return self._documents

    def open(self, site: str) -> None:
        """Read forward passes from now on, for a site."""
        self._open.add(site)
        if not self._handles:
            self._handles = [
                self.stack.register_forward_pre_hook(self._before, with_kwargs=True),
                self.stack.register_forward_hook(self._after),
            ]

    def close(self, site: str) -> None:
        """Read no more for a site; without any, the model's own attention implementation is set again."""
        self._open.discard(site)
        if not self._open and not self._backward_pending:
            self._detach()

    def listen(
        self,
        module: nn.Module,
        listener: Listener | None,
        stats: Collection[str] = (),
        numbers: Callable[[AttentionCall], Tensor] | None = None,
    ) -> None:
        """Pass each call of an attention module, and what `AttentionCall.run` gives, to a listener; None to stop."""
        if listener is None:
            _listening.pop(module, None)
        else:
            _listening[module] = _Listening(tuple(stats), numbers, listener)

    def edit(self, module: nn.Module, edit: Edit | None) -> None:
        """Let an attention module return what an edit makes of its calls, while a site is open; None to stop."""
        if edit is None:
            _edits.pop(module, None)
        else:
            _edits[module] = edit

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self.reading:  # an error ended the pass
            _Pass.current = None
        self._handles, self._pass = [], None
        self._restore()

    def _before(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._backward_pending, self._pass = False, None
        if not self._open:
            self._detach()
            return
        given = _arguments(stack, args, kwargs)
        packed = packed_documents(given)
        if packed is not None and not self._switches:
            raise UserError("position_ids start again, but an Adapter's `call` reads whole rows: give one text a row")
        if self.document_start is not None:
            self._documents = _documents_by_id(given, self.document_start, packed)
        if self._switches:
            require_no_weights(stack, given)
            self._switch()
        self._pass = _Pass.current = _Pass(packed)

    def _after(self, stack: nn.Module, args: Any, output: Any) -> None:
        if self.reading and self._pass is not None:
            finished, self._pass, _Pass.current = self._pass, None, None
            finished.finish()
            result = first_tensor(output)
            if result is not None and result.requires_grad:
                self._backward_pending = True
                result.register_hook(self._on_backward)

    def _on_backward(self, grad: Tensor) -> None:
        # torch has no public hook for the end of a backward pass; its own FSDP and DDP use this one.
        torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)

    def _after_backward(self) -> None:
        self._backward_pending = False
        if not self._open:
            self._detach()

    def _switch(self) -> None:
        if not self._own:
            self._own = [(config, getattr(config, IMPLEMENTATION)) for config in configurations(self.stack)]
        for config, _ in self._own:
            setattr(config, IMPLEMENTATION, NAME)

    def _restore(self) -> None:
        for config, own in self._own:
            if getattr(config, IMPLEMENTATION) == NAME:
                setattr(config, IMPLEMENTATION, own)
        self._own = []


def first_tensor(*places: Any) -> Tensor | None:
    """The first tensor of arguments, keywords or a result."""
    for place in places:
        if isinstance(place, Tensor):
            return place
        values = place.values() if isinstance(place, Mapping) else place if isinstance(place, tuple | list) else ()
        for value in values:
            if isinstance(value, Tensor):
                return value
    return None


def configurations(model: nn.Module) -> list[Any]:
    """Every configuration from which a module of the model takes its attention implementation."""
    held: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in held if hasattr(config, IMPLEMENTATION)}.values())


@contextmanager
def implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Run another attention implementation inside the `with` block, without asking whether the model supports it."""
    own = [(config, getattr(config, IMPLEMENTATION)) for config in configurations(model)]
    try:
        for config, _ in own:
            setattr(config, IMPLEMENTATION, name)
        yield
    finally:
        for config, before in own:
            setattr(config, IMPLEMENTATION, before)


def require_no_padding(attention_mask: Tensor | None) -> None:
    """Check that a mask [B, T] excludes no token: one host sync, and none without a mask.

    Raises:
        UserError: naming how many it excludes.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        padded = int((~attention_mask.bool()).sum())
        raise UserError(f"attention_mask excludes {padded} tokens, but only rows without padding are read: cut them")


def _arguments(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name; none if it is no call of forward, which raises its own error."""
    try:
        given = inspect.signature(stack.forward).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}
    return given | given.get("kwargs", {})


def require_no_weights(stack: nn.Module, given: Mapping[str, Any]) -> None:
    """Check that nobody waits for attention weights, of which a model would return none without an error.

    Raises:
        UserError: if they are asked for by the caller or the configuration.
    """
    asked = given.get("output_attentions")
    if getattr(getattr(stack, "config", None), "output_attentions", False) if asked is None else asked:
        raise UserError("output_attentions is true, but no weights exist while statistics are read: set it to false")


def packed_documents(given: Mapping[str, Any]) -> Documents | None:
    """Check the mask, cache and positions that a caller gives: a host sync for a mask, and one for positions.

    Args:
        given: arguments of the module that runs the blocks.

    Returns:
        The documents of rows that are packed, i.e. whose positions start again at 0; None for whole rows.

    Raises:
        UserError: if tokens are excluded, the cache is not empty, the positions of a document are not 0, 1, 2, ..., or
            `cu_seq_lens_q` says otherwise.
    """
    cached = getattr(given.get("past_key_values"), "get_seq_length", lambda: 0)()
    if cached:
        raise UserError(f"the cache holds {cached} tokens, but only whole rows are read: run without, do not generate")
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        require_no_padding(mask)
    positions = given.get("position_ids")
    if not isinstance(positions, Tensor):
        return None
    tokens = first_tensor(given.get("input_ids"), given.get("inputs_embeds"))
    shared = positions.dim() == 2 and len(positions) == 1
    try:
        documents = documents_of_positions(
            positions.expand(len(tokens), -1) if shared and tokens is not None else positions
        )
    except ValueError:
        raise UserError(
            "position_ids are not 0, 1, 2, ... in every document, but only such rows are read: give one text a row, or "
            "position_ids that start again at 0"
        ) from None
    lengths = given.get("cu_seq_lens_q")
    if documents is not None and isinstance(lengths, Tensor) and lengths.tolist() != documents.bounds:
        raise UserError("position_ids start again where cu_seq_lens_q does not begin a document: give one of them")
    _documents.pop(positions, None)
    if documents is not None:
        _documents[positions] = documents
    return documents


def _documents_by_id(given: Mapping[str, Any], document_start: int, packed: Documents | None) -> Documents:
    """The documents of whole rows, by the id of the first token of each.

    Raises:
        UserError: if positions show documents already, or no ids are given.
    """
    if packed is not None:
        raise UserError(
            f"document_start is {document_start}, but position_ids show where documents start: leave document_start out"
        )
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor):
        raise UserError(
            f"document_start is {document_start}, but the model gets no input_ids: leave document_start out"
        )
    return Documents(ids == document_start)
