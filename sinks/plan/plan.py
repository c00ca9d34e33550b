"""The plan of a run: what its model, its layout and its data cost together."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from sinks.families import CausalLM
from sinks.models.counting import SCORES, Flops, parameters_by_kind
from sinks.models.cross_entropy import loss_memory
from sinks.models.decoder import Architecture
from sinks.parallel.tensor_parallel import check_divisible
from sinks.plan.activations import decoder_memory
from sinks.plan.layout import Layout, Precision
from sinks.plan.memory import Memory, Pieces, device_memory


@dataclass(frozen=True)
class Batch:
    """What one device reads at a time.

    Args:
        vocab_size: number of token ids V.
        tokens: length T of a text.
        rows: texts of a micro-batch.
        accumulated: micro-batches per optimizer step.
    """

    vocab_size: int
    tokens: int
    rows: int
    accumulated: int


@dataclass(frozen=True)
class Plan:
    """What a run costs.

    Args:
        title: the model in a line.
        parameters: number of each kind.
        idle: parameters that a token does not use: experts that are not chosen for it.
        flops: operations per token.
        layout: how the run is spread.
        precision: of the run.
        batch: of one device.
        memory: of one device.
        activations: bytes kept for a micro-batch, logits apart, by whether with activation checkpointing.
        checkpointing: whether the run has it.
    """

    title: str
    parameters: dict[str, int]
    idle: int
    flops: Flops
    layout: Layout
    precision: Precision
    batch: Batch
    memory: Memory
    activations: dict[bool, int]
    checkpointing: bool

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    @property
    def non_embedding(self) -> int:
        """Without embedding and head."""
        return self.total - self.parameters["embedding"] - self.parameters.get("head", 0)

    @property
    def active(self) -> int:
        """That a token uses, embedding and head included."""
        return self.total - self.idle

    @property
    def scores_share(self) -> float:
        """Share of attention's two products in the operations."""
        return self.flops.forward_by_kind.get(SCORES, 0.0) / self.flops.forward

    @property
    def tokens_per_step(self) -> int:
        return self.batch.rows * self.batch.tokens * self.batch.accumulated * self.layout.data_parallel

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; memory in bytes."""
        memory = dataclasses.asdict(self.memory)
        del memory["accumulates"]
        return {
            "model": self.title,
            "parameters": {
                "total": self.total,
                "active": self.active,
                "non_embedding": self.non_embedding,
                "by_kind": self.parameters,
            },
            "flops_per_token": {
                "forward": self.flops.forward,
                "forward_and_backward": self.flops.per_token,
                "attention_scores_share": self.scores_share,
                "forward_by_kind": self.flops.forward_by_kind,
            },
            "devices": dataclasses.asdict(self.layout)
            | {"shards": self.layout.shards, "data_parallel": self.layout.data_parallel},
            "precision": self.precision.name,
            "batch": dataclasses.asdict(self.batch),
            "tokens_per_step": self.tokens_per_step,
            "memory_per_device": memory
            | {"at_the_loss": self.memory.at_the_loss, "after_backward": self.memory.after_backward}
            | {"peak": self.memory.peak, "activation_checkpointing": self.checkpointing}
            | {"activations_without_checkpointing": self.activations[False]}
            | {"activations_with_checkpointing": self.activations[True]},
        }


def plan_model(model: CausalLM, layout: Layout, precision: Precision, batch: Batch, device: str) -> Plan:
    """Plan a model that can be trained.

    Args:
        model: whose decoder need not be built.
        layout: how the run is spread.
        precision: of the run.
        batch: of one device.
        device: type of the device, `cuda` or `cpu`; it need not be there.

    Raises:
        UserError: if the model cannot be split over the tensor-parallel devices.
    """
    whole = model.meta_decoder()
    check_divisible(whole, layout.tensor_parallel)
    architecture = on_one_device(model.architecture, layout.tensor_parallel)
    share = model.meta_decoder(architecture) if layout.tensor_parallel > 1 else whole
    blocks = [sum(p.numel() for p in block.parameters()) for block in share.blocks]
    pieces = Pieces(blocks, sum(p.numel() for p in share.parameters()) - sum(blocks))
    held = decoder_memory(lambda: model.make_decoder(architecture), batch.tokens, precision, device)
    activations = {choice: batch.rows * held.per_row.activations(choice) for choice in (False, True)}
    checkpointing = model.execution.activation_checkpointing
    product = precision.autocast or precision.stored
    tokens = batch.rows * batch.tokens
    logits = loss_memory(tokens, architecture.d_model, batch.vocab_size, device, product, model.objective.whole_logits)
    return Plan(
        title=f"{type(model).__name__}, {model.architecture.n_layers} layers, d_model {model.architecture.d_model}",
        parameters=parameters_by_kind(whole),
        idle=whole.idle_parameters(),
        flops=whole.flops_per_token(batch.tokens),
        layout=layout,
        precision=precision,
        batch=batch,
        memory=device_memory(
            pieces, layout, precision, held.buffers, held.weight_copies, activations[checkpointing],
            logits=logits, accumulates=batch.accumulated > 1,
            averages=model.averaging.copies,
        ),
        activations=activations,
        checkpointing=checkpointing,
    )  # fmt: skip


def on_one_device(architecture: Architecture, tensor_parallel: int) -> Architecture:
    """The widths that one device computes under tensor parallelism: its heads and hidden channels."""
    config = architecture.attention_config("", 1)
    return dataclasses.replace(
        architecture,
        n_heads=config.n_heads // tensor_parallel,
        n_kv_heads=config.n_kv_heads // tensor_parallel,
        head_dim=config.head_dim,
        ffn_hidden=architecture.ffn_hidden // tensor_parallel,
    )
