"""Memory of one device: what a run holds all the time, and what comes on top at the two moments when it holds most."""

from dataclasses import dataclass

from sinks.plan.layout import Layout, Precision

# Blocks that FSDP2 has gathered at once: the one that runs, and the next one, on its way.
GATHERED_BLOCKS = 2


@dataclass(frozen=True)
class Pieces:
    """Parameters of one device's share of the heads and hidden channels, before they are sharded.

    Args:
        blocks: number of parameters of each block.
        rest: of what stands outside the blocks.
    """

    blocks: list[int]
    rest: int

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.rest


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. Fragmentation and what the libraries themselves take come on top.

    Args:
        parameters: as stored.
        gradients: as many.
        optimizer: AdamW's two moments.
        averages: of the weights, if the run keeps them.
        buckets: DDP's copy of the gradients, which it sends.
        gathered: parameters FSDP2 has unsharded: the two blocks at work, and what stands outside the blocks.
        gathered_gradients: their gradients before they are scattered.
        buffers: rotary angles.
        weight_copies: weights in the dtype of the matrix products, kept by autocast.
        activations: kept for the backward pass, logits apart.
        logits: of the loss and the head at work, at their peak.
        accumulates: whether gradients outlive a micro-batch.
    """

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    buckets: int
    gathered: int
    gathered_gradients: int
    buffers: int
    weight_copies: int
    activations: int
    logits: int
    accumulates: bool

    @property
    def always(self) -> int:
        return self.parameters + self.optimizer + self.averages + self.buckets + self.buffers

    @property
    def at_the_loss(self) -> int:
        """When all activations are kept, and no gradient is there yet unless it is accumulated."""
        accumulated = self.gradients if self.accumulates else 0
        return self.always + self.gathered + self.weight_copies + self.activations + self.logits + accumulated

    @property
    def after_backward(self) -> int:
        """When all gradients are there, and no activation any more."""
        return self.always + self.gradients + self.gathered + self.gathered_gradients

    @property
    def peak(self) -> int:
        return max(self.at_the_loss, self.after_backward)


def device_memory(
    pieces: Pieces,
    layout: Layout,
    precision: Precision,
    buffers: int,
    weight_copies: int,
    activations: int,
    logits: int,
    accumulates: bool,
    averages: int = 0,
) -> Memory:
    """Memory of one device.

    Args:
        pieces: parameters of its share.
        layout: how the run is spread.
        precision: of the run.
        buffers: bytes of buffers.
        weight_copies: bytes autocast keeps.
        activations: bytes of a micro-batch.
        logits: bytes of the loss and the head at work.
        accumulates: whether gradients outlive a micro-batch.
        averages: copies of the weights that are averaged over steps.
    """
    stored = precision.stored.itemsize
    held = -(-pieces.total // layout.shards) * stored
    at_work = (pieces.rest + GATHERED_BLOCKS * max(pieces.blocks)) * stored if layout.strategy == "sharded" else 0
    return Memory(
        parameters=held,
        gradients=held,
        optimizer=2 * held,
        averages=averages * held,
        buckets=held if layout.strategy == "ddp" else 0,
        gathered=at_work,
        gathered_gradients=at_work,
        buffers=buffers,
        weight_copies=weight_copies,
        activations=activations,
        logits=logits,
        accumulates=accumulates,
    )
