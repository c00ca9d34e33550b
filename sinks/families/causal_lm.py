"""The LightningModule with every option free; the named families fix some of them."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sinks.described import Described
from sinks.errors import UserError
from sinks.families.averaging import Averaging, NoAveraging
from sinks.families.objectives import NextToken, Objective
from sinks.families.optimizers import (
    AdamW,
    Optimization,
    OptimizerFactory,
    SkipGuard,
    make_optimizer,
    parameter_groups,
    placeholders,
)
from sinks.families.start_from import check_start, start
from sinks.families.token_mean import TokenMean
from sinks.models.attention import Attention
from sinks.models.attention_config import AttentionConfig
from sinks.models.attention_gates import AttentionGate, NoGate
from sinks.models.clips import NoClip, ResidualClip
from sinks.models.counting import Flops
from sinks.models.decoder import Architecture, Components, Decoder
from sinks.models.exclusion import Exclusion, NoExclusion
from sinks.models.execution import Execution
from sinks.models.feed_forward import FeedForwardConfig, SwiGLU
from sinks.models.key_gates import KeyGate, NoKeyGate
from sinks.models.mixers import FeedForward, SequenceMixer
from sinks.models.normalizers import Normalizer, Softmax
from sinks.models.norms import IdentityNorm, Norm, RMSNorm
from sinks.parallel.checkpoint_io import reject_another_architecture, sizes
from sinks.parallel.sharding import shard

ATTENTION_PARTS: dict[str, type[nn.Module]] = {
    "normalizer": Softmax, "attention_gate": NoGate, "exclusion": NoExclusion, "key_gate": NoKeyGate,
}  # fmt: skip
# What a training step returns beside the loss that is minimized.
TASK_LOSS, AUXILIARY_LOSS = "task_loss", "auxiliary_loss"
Mixer = Callable[[AttentionConfig], SequenceMixer]


def layer_mixers(
    n_layers: int, attention: Mixer, mixer: Mixer | None, pattern: tuple[Literal["mixer", "attention"], ...]
) -> list[Mixer]:
    """The mixer of each layer.

    Raises:
        UserError: if there is a pattern of a mixer that is not given, or no layer has what a pattern names.
    """
    if mixer is None:
        if pattern:
            raise UserError("model.mixer_pattern is given, but model.mixer is not: give the mixer, e.g. GatedDeltaNet")
        return [attention] * n_layers
    kinds = {"mixer": mixer, "attention": attention}
    repeated = pattern or ("mixer",)
    if missing := set(repeated) - set(repeated[:n_layers]):
        raise UserError(
            f"model.mixer_pattern has {missing.pop()!r} after its first {n_layers} entries, but architecture.n_layers "
            f"is {n_layers}: give a shorter pattern, or more layers"
        )
    return [kinds[repeated[i % len(repeated)]] for i in range(n_layers)]


def reject_attention_options(
    config: AttentionConfig, given: Mapping[str, Callable[[AttentionConfig], nn.Module]]
) -> None:
    """A mixer in place of attention has none of its parts.

    Raises:
        UserError: if one that is given is not the default.
    """
    with torch.device("meta"):
        parts = {name: make(config) for name, make in given.items()}
    for name, part in parts.items():
        if type(part) is not ATTENTION_PARTS[name]:
            raise UserError(
                f"model.mixer replaces attention in every layer, so model.{name} {type(part).__name__} would have no "
                "effect: remove one of them"
            )


class CausalLM(Described, lightning.LightningModule):
    """Causal language model: next-token cross-entropy in nats per token.

    Args:
        vocab_size: number of token ids; taken from the data.
        context_length: tokens seen; taken from the data.
        architecture: widths, positions, initialization.
        optimization: learning rate, decay and schedule.
        optimizer: what updates the parameters; any torch optimizer by its import path.
        mixer: sequence mixer in place of attention; without a layer of attention, its parts (normalizer,
            attention_gate, exclusion, key_gate) must be left out.
        mixer_pattern: which of the first layers have the mixer and which attention, repeated over all layers; without
            it all have the mixer.
        normalizer: how attention scores become weights.
        attention_gate: what scales each head's output.
        exclusion: what is taken out of each head's output before that, as by exclusive self-attention.
        key_gate: what scales the keys.
        norm: norm before attention and the feed-forward of each block.
        feed_forward_norm: norm before the feed-forward, where it is another one than before attention.
        head_norm: norm before the head.
        output_norm: norm of each sublayer's output, before it joins the residual stream (sandwich).
        residual_clip: applied to the residual stream after each addition.
        feed_forward: feed-forward sublayer.
        execution: compilation and activation checkpointing.
        start_from: run folder whose last weights a run starts from; parts that it lacks must leave the model as it is.
        objective: what training minimizes.
        averaging: which weights are validated and remain at the end: those of the last step, or an average over steps.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        architecture: Architecture = Architecture(),
        optimization: Optimization = Optimization(),
        optimizer: OptimizerFactory = AdamW,
        mixer: Mixer | None = None,
        mixer_pattern: tuple[Literal["mixer", "attention"], ...] = (),
        normalizer: Callable[[AttentionConfig], Normalizer] = Softmax,
        attention_gate: Callable[[AttentionConfig], AttentionGate] = NoGate,
        exclusion: Callable[[AttentionConfig], Exclusion] = NoExclusion,
        key_gate: Callable[[AttentionConfig], KeyGate] = NoKeyGate,
        norm: Callable[[int], Norm] = RMSNorm,
        feed_forward_norm: Callable[[int], Norm] | None = None,
        head_norm: Callable[[int], Norm] = RMSNorm,
        output_norm: Callable[[int], Norm] = IdentityNorm,
        residual_clip: Callable[[str], ResidualClip] = NoClip,
        feed_forward: Callable[[FeedForwardConfig], FeedForward] = SwiGLU,
        execution: Execution = Execution(),
        start_from: str | None = None,
        objective: Callable[[], Objective] = NextToken,
        averaging: Callable[[], Averaging] = NoAveraging,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.architecture = architecture
        self.optimization = optimization
        self.execution = execution
        self.optimizer_factory = optimizer
        self.start_from = start_from
        self.objective = objective()
        self.averaging = averaging()
        parts = {
            "normalizer": normalizer, "attention_gate": attention_gate, "exclusion": exclusion, "key_gate": key_gate,
        }  # fmt: skip
        attention = partial(
            Attention, normalizer=normalizer, gate=attention_gate, exclusion=exclusion, key_gate=key_gate
        )
        mixers = layer_mixers(architecture.n_layers, attention, mixer, mixer_pattern)
        if attention not in mixers:
            reject_attention_options(architecture.attention_config("mixer", context_length), parts)
        self.layers = [
            Components(each, norm, residual_clip, feed_forward, output_norm, feed_forward_norm) for each in mixers
        ]
        self.head_norm = head_norm
        self.objective.check(self)
        # An invalid option is an error at construction, before data is read or devices are used.
        make_optimizer(optimizer, placeholders(parameter_groups(self.meta_decoder(), optimization)))
        self.decoder: Decoder | None = None
        self.validation_loss = TokenMean()
        self.gradient_norm: Tensor | None = None
        self.first_nonfinite_step = torch.zeros(
            (), dtype=torch.int64
        )  # first optimizer step without a finite gradient, or 0

    def make_decoder(self, architecture: Architecture | None = None) -> Decoder:
        """A new decoder of this model's components, of its own or of other widths."""
        architecture = architecture or self.architecture
        return Decoder(self.vocab_size, self.context_length, architecture, self.layers, self.head_norm)

    def meta_decoder(self, architecture: Architecture | None = None) -> Decoder:
        """The unsharded decoder on the meta device; or one of other widths."""
        with torch.device("meta"):
            return self.make_decoder(architecture)

    def flops_per_token(self) -> Flops:
        """Operations per token at the context length."""
        return self.meta_decoder().flops_per_token(self.context_length)

    def configure_model(self) -> None:
        if self.decoder is not None:
            return
        if self.device_mesh is None:
            self.decoder = self.make_decoder()
            for block in self.decoder.blocks:
                self.execution.prepare(block)
            return
        self.decoder = self.meta_decoder()
        shard(self.decoder, self.device_mesh, self.device, self.execution.prepare)

    def check_start(self) -> str | None:
        """The checkpoint that `start_from` means; weights that this model cannot start from are rejected unread.

        Raises:
            UserError: naming the first weight that differs.
        """
        return None if self.start_from is None else str(check_start(self.meta_decoder(), self.start_from))

    def on_fit_start(self) -> None:
        assert self.decoder is not None
        if self.start_from is not None and self.trainer.ckpt_path is None:  # a checkpoint has all weights
            start(self.decoder, self.start_from)
        self.objective.prepare(self)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V], or with targets [B, T] their mean cross-entropy in nats.

        Raises:
            UserError: if T is above the context length.
        """
        assert self.decoder is not None, "configure_model() comes first"
        if tokens.shape[1] > self.context_length:
            raise UserError(
                f"{tokens.shape[1]} tokens were given, but the context length is {self.context_length}: give fewer"
            )
        return self.decoder(tokens, targets)

    @torch.no_grad()
    def attention_maps(self, tokens: Tensor) -> Tensor:
        """Attention weights [layers, heads, T, T] of one row of token ids [1, T], of the layers that have them."""
        self.configure_model()
        assert self.decoder is not None
        return self.decoder.attention_maps(tokens)[:, 0].float()

    def loss(self, rows: Tensor) -> Tensor:
        """Mean next-token cross-entropy of rows [B, T + 1]."""
        return self(rows[:, :-1], rows[:, 1:])

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        """What is minimized (`loss`), and its two terms, detached."""
        task, auxiliary = self.objective.terms(self, batch)
        loss = task if auxiliary is None else task + auxiliary
        terms = {TASK_LOSS: task.detach()} | ({} if auxiliary is None else {AUXILIARY_LOSS: auxiliary.detach()})
        value = loss.detach()
        # A non-finite loss always makes the gradient non-finite, which all ranks share: 0 * loss is then NaN.
        loss.register_hook(lambda gradient: gradient + 0 * value)
        return {"loss": loss} | terms

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validation_loss.update(self.loss(batch), batch[:, 1:].numel())
        self.log("validation/loss", self.validation_loss, on_step=False, on_epoch=True, logger=False)

    def on_validation_epoch_start(self) -> None:
        self.averaging.exchange(self)

    def on_validation_epoch_end(self) -> None:
        self.averaging.exchange(self)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does; the norm before clipping is kept for the recorder, and decides whether to update."""
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val or math.inf)
        else:
            self.gradient_norm = norm
            if gradient_clip_val:
                nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)
        # The optimizer makes no update from the first step on whose gradient is not finite; no host sync.
        first_nonfinite_step = self.first_nonfinite_step.to(norm.device)
        first_failure = (first_nonfinite_step == 0) & ~norm.isfinite()
        self.first_nonfinite_step = first_nonfinite_step + first_failure * (self.trainer.global_step + 1)
        self._guard.arm(self.first_nonfinite_step > 0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = parameter_groups(self, self.optimization)
        optimizer = make_optimizer(self.optimizer_factory, groups)
        self._guard = SkipGuard(optimizer)
        self.averaging.follow(optimizer, self.trainer)  # after the guard: of the weights that it lets through
        max_steps = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optimization.factor(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject a checkpoint of another architecture.

        Raises:
            UserError: naming the first parameter that differs.
        """
        self.configure_model()
        own = self.state_dict()
        # A sharded strategy has compared and loaded the weights itself.
        reject_another_architecture(sizes(checkpoint.get("state_dict", own)), sizes(own))
