"""The properties, one function each: `Broken` where it does not hold, `NotTried` where it does not apply."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.checks.subject import Broken, NotTried, Subject, blocks_of, decoder_of, same, trained
from sinks.families.optimizers import check_coverage, parameter_groups
from sinks.models.attention import Attention
from sinks.models.decoder import reset_parameters
from sinks.observe import AttentionRecord, NormRecord, Reader, Site, sites_of

STEPS = (1e-6, 1e-7)  # of finite differences in float64: a kink within one is rarely within the other too
EXACT = 1e-9  # float64, other orders of summation
CLOSE = 2e-4  # float32 against float64


@torch.no_grad()
def causal(subject: Subject) -> None:
    """A future token never changes a past logit."""
    model = subject.model(dtype=torch.float64)
    before = subject.tokens(model)
    length = before.shape[1]
    full = model(before)
    for first in {1, length // 2, length - 1}:
        after = before.clone()
        after[:, first:] = (after[:, first:] + 1) % model.vocab_size
        changed = model(after)
        same(changed[:, :first], full[:, :first], f"the logits before token {first}, changed from there on,", EXACT)
        if torch.equal(changed[:, first:], full[:, first:]):
            raise Broken(f"the logits from token {first} on do not depend on those tokens")


@torch.no_grad()
def prefix(subject: Subject) -> None:
    """A prefix alone gives the same logits as inside a longer sequence."""
    model = subject.model(dtype=torch.float64)
    tokens = subject.tokens(model)
    full = model(tokens)
    for length in {1, 2, tokens.shape[1] // 2 + 1}:
        same(model(tokens[:, :length]), full[:, :length], f"what the first {length} tokens alone give", EXACT)


def gradients(subject: Subject) -> None:
    """Gradients of the embedded input and of every parameter agree with finite differences, in float64.

    Each is compared along one random direction: torch.autograd.gradcheck takes minutes
    to locate a difference.
    """
    model = subject.model(dtype=torch.float64)
    decoder, rows = decoder_of(model), subject.rows(model)[:1, :6]
    inputs = decoder.embedding(rows[:, :-1]).detach().requires_grad_()

    def loss() -> Tensor:
        x = decoder.positions(inputs)
        for block in decoder.blocks:
            x = block(x)
        return F.cross_entropy(decoder.head(decoder.head_norm(x)).flatten(0, 1), rows[:, 1:].flatten())

    named = {"the embedded input": inputs}
    named |= {n: p for n, p in decoder.named_parameters() if p.requires_grad and n != "embedding.weight"}
    found = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    for (name, value), gradient in zip(named.items(), found, strict=True):
        direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        own = 0.0 if gradient is None else float((gradient * direction).sum())
        slopes = [_slope(loss, value, direction, step) for step in STEPS]
        if not any(abs(own - slope) <= 1e-6 + 1e-4 * abs(slope) for slope in slopes):
            raise Broken(
                f"the gradient of {name} gives {own:.6g} along a direction, finite differences {slopes[0]:.6g}"
            )


@torch.no_grad()
def _slope(loss: Callable[[], Tensor], value: Tensor, direction: Tensor, step: float) -> float:
    """Slope of a loss along a direction of one of its inputs, which is restored."""
    before = value.clone()
    sides = []
    for side in (step, -step):
        value.copy_(before + side * direction)
        sides.append(float(loss()))
    value.copy_(before)
    return (sides[0] - sides[1]) / (2 * step)


def every_parameter_learns(subject: Subject) -> None:
    """Every parameter gets a gradient from the loss, near the initial weights: zeros among them may block others."""
    model = subject.model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.loss(subject.rows(model)).backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    if unused:
        raise Broken(f"no gradient reaches {', '.join(unused)}")


def every_parameter_in_one_group(subject: Subject) -> None:
    """The optimizer updates every parameter, each in one group; none is zero-dimensional, which FSDP2 rejects."""
    model = subject.model()
    flat = [n for n, p in model.named_parameters() if p.dim() == 0]
    if flat:
        raise Broken(f"{', '.join(flat)} is zero-dimensional, which FSDP2 rejects: give it the shape (1,)")
    (optimizer,) = trained(model.train(), subject.rows(model), 1).optimizers
    groups = parameter_groups(model, model.optimization)
    try:
        check_coverage(getattr(optimizer, "optimizer", optimizer), groups)
    except ValueError as error:
        raise Broken(str(error)) from None
    missing = {p for p in model.parameters() if p.requires_grad} - {p for group in groups for p in group["params"]}
    if missing:
        raise Broken(f"{len(missing)} parameters are in no group")


def first_steps(subject: Subject) -> None:
    """Ten steps on the same rows are finite and lower the loss."""
    model = subject.model()
    rows = subject.rows(model)
    with torch.no_grad():
        before = model.loss(rows)
    trained(model.train(), rows, 10)
    if int(model.first_nonfinite_step):
        raise Broken(f"the gradient of step {int(model.first_nonfinite_step)} is not finite")
    with torch.no_grad():
        after = model.eval().loss(rows)
    if not after < before:
        raise Broken(f"the loss on the rows that were trained on went from {before:.4f} to {after:.4f}")


def meta_initialization(subject: Subject) -> None:
    """Built on the meta device and initialized in place, the model is bit for bit the same as when built directly."""
    eager = subject.model(seed=3)
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            meta = subject.make()
            meta.configure_model()
        meta.to_empty(device="cpu")
        for parameter in meta.parameters():
            parameter.data.fill_(torch.nan)  # so that an uninitialized value cannot pass by chance
        torch.manual_seed(3)
        reset_parameters(decoder_of(meta))
    filled = dict(decoder_of(meta).named_parameters()) | dict(decoder_of(meta).named_buffers())
    usual = dict(decoder_of(eager).named_parameters()) | dict(decoder_of(eager).named_buffers())
    wrong = [name for name, value in usual.items() if not torch.equal(filled[name], value)]
    if wrong:
        raise Broken(f"reset_parameters() does not initialize {', '.join(wrong)} as the constructor does")


def save_and_load(subject: Subject) -> None:
    """A checkpoint of a trained model, loaded into another one, gives the same logits."""
    model, other = subject.model(seed=0), subject.model(seed=1)
    trained(model.train(), subject.rows(model), 2)
    other.load_state_dict(model.eval().state_dict())
    tokens = subject.tokens(model)
    with torch.no_grad():
        same(other(tokens), model(tokens), "the output of a loaded checkpoint (some state is not saved)", 0.0)


@torch.no_grad()
def reading_changes_nothing(subject: Subject) -> None:
    """Logits are bit for bit the same while statistics are read."""
    model = subject.model()
    tokens = subject.tokens(model)
    unread = model(tokens)
    sites = sites_of(model)
    if not sites:
        raise NotTried("the model has no site")
    with Reader(sites).reading():
        read = model(tokens)
    same(read, unread, "the output while statistics are read", 0.0)


def _records(subject: Subject) -> tuple[list[tuple[Site, AttentionRecord | NormRecord]], list[Attention]]:
    """Records of one forward pass of every norm and attention site, in float64; and the attention layers."""
    model = subject.model(dtype=torch.float64)
    found: list[tuple[Site, AttentionRecord | NormRecord]] = []
    sites = [site for site in sites_of(model) if site.kind in ("norm", "output_norm", "attention")]
    fields = (
        "first_token_mass", "learned_sink_mass", "key_mass", "entropy", "max_logit", "own_token_mass",
        "previous_token_mass", "row_mass", "used",
    )  # fmt: skip

    def take(site: Site, record: AttentionRecord | NormRecord) -> None:
        found.append((site, record))

    for site in sites:
        site.listen(partial(take, site), fields)
    model(subject.tokens(model))
    for site in sites:
        site.listen(None)
    layers = [block.attention for block in blocks_of(model) if isinstance(block.attention, Attention)]
    return found, layers


@torch.no_grad()
def norms_are_as_reported(subject: Subject) -> None:
    """A norm's reported internals give its output: the RMS, the gate."""
    found, _ = _records(subject)
    records = [(site.name, record) for site, record in found if isinstance(record, NormRecord)]
    if not records:
        raise NotTried("the model has no norm site")
    for name, record in records:
        if record.divided is not None and record.weight is not None and record.normalized is not None:
            rms = record.divided.square().mean(-1, keepdim=True).sqrt()
            expected = record.weight * record.divided / rms
            # The norm's eps makes every token a little smaller than this, and no larger.
            shrunk = (record.normalized * expected).sum(-1, keepdim=True) / expected.square().sum(-1, keepdim=True)
            what = f"what the norm at {name} calls normalized, and weight * divided / rms,"
            same(record.normalized, shrunk.clamp(0.0, 1.0) * expected, what, 1e-6)
        if record.gate is not None and record.normed is not None and record.output is not None:
            same(record.gate * record.normed, record.output, f"gate * normed at {name} and the output", 1e-6)


@torch.no_grad()
def maps_give_the_output(subject: Subject) -> None:
    """Attention maps are causal, and times the values they are the output of attention."""
    for site, record, layer in _attention_records(subject):
        weights = layer.weights_of(*_projections(record))
        if weights.triu(1).abs().max() > EXACT:
            raise Broken(f"the attention map of {site.name} has weights above the diagonal, on future tokens")
        if layer.normalizer.learned_values:
            continue
        q, k, v = _projections(record)
        out, _ = layer.normalizer.attend(q, k, v, None)
        values = v.repeat_interleave(weights.shape[1] // v.shape[1], dim=1)
        same(weights @ values, out, f"the map times the values at {site.name}", EXACT)


@torch.no_grad()
def attention_is_as_reported(subject: Subject) -> None:
    """Masses, entropy, key mass and routes are those of the attention maps."""
    for site, record, layer in _attention_records(subject):
        weights = layer.weights_of(*_projections(record))
        total = weights.sum(-1)
        row_mass = torch.ones_like(total) if layer.normalizer.learned_values else total
        learned = torch.zeros_like(total)
        if record.row_normalized:
            learned = (1 - total).clamp_min(0.0)
        else:
            weights = weights / total.clamp_min(torch.finfo(total.dtype).tiny).unsqueeze(-1)
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        if layer.normalizer.learned_sinks:
            entropy = entropy - torch.special.xlogy(learned, learned)
        dense = {
            "first_token_mass": weights[..., 0],
            "learned_sink_mass": learned,
            "key_mass": weights.sum(2),
            "entropy": entropy,
            "own_token_mass": weights.diagonal(dim1=-2, dim2=-1),
            "previous_token_mass": torch.nn.functional.pad(weights.diagonal(-1, -2, -1), (1, 0)),
            "row_mass": row_mass,
        }
        if record.relative_value_norms is not None and record.learned_value_norm is None:
            w = record.relative_value_norms.to(weights).unsqueeze(-1)
            dense |= {"used": (weights @ w).squeeze(-1), "excess": (weights @ (w - 1).clamp_min(0.0)).squeeze(-1)}
        for name, expected in dense.items():
            reported = getattr(record, name)
            if reported is not None:
                same(
                    reported.double(),
                    expected,
                    f"{name} at {site.name} and that of the attention map",
                    CLOSE,
                    floor=1.0,
                )


def _attention_records(subject: Subject) -> list[tuple[Site, AttentionRecord, Attention]]:
    found, layers = _records(subject)
    if not layers:
        raise NotTried("no layer has attention weights")
    records = [(site, record) for site, record in found if isinstance(record, AttentionRecord)]
    return [(site, record, layer) for (site, record), layer in zip(records, layers, strict=True)]


def _projections(record: AttentionRecord) -> tuple[Tensor, Tensor, Tensor]:
    assert record.q is not None
    assert record.k is not None
    assert record.v is not None
    return record.q, record.k, record.v


PROPERTIES: dict[str, Callable[[Subject], None]] = {
    "causal": causal,
    "prefix": prefix,
    "gradients": gradients,
    "every parameter learns": every_parameter_learns,
    "every parameter in one group": every_parameter_in_one_group,
    "first steps": first_steps,
    "meta initialization": meta_initialization,
    "save and load": save_and_load,
    "reading changes nothing": reading_changes_nothing,
    "norms are as reported": norms_are_as_reported,
    "maps give the output": maps_give_the_output,
    "attention is as reported": attention_is_as_reported,
}
