"""`sinks plan`: what a configuration costs on so many devices, before anything is allocated, read or trained."""

import json

from lightning.pytorch.cli import LightningArgumentParser

from sinks.cli.help import full_help, short_help
from sinks.cli.training import TrainingCLI, command_line
from sinks.data.module import TokenData
from sinks.families import CausalLM
from sinks.plan.layout import count_devices, read_layout, read_precision
from sinks.plan.plan import Batch, Plan, plan_model

GIB = 2**30


class PlanCLI(TrainingCLI):
    """The configuration of `sinks fit`, of which model and data are built, and neither trainer nor run folder."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items() if k != "callbacks"})
        parser.add_lightning_class_args(CausalLM, "model", subclass_mode=True)
        parser.add_lightning_class_args(TokenData, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"run.dir": "unused"})
        parser.add_argument(
            "--devices", type=int | None, default=None, help="devices of all machines; the trainer section's by default"
        )
        parser.add_argument("--json", action="store_true", help="print JSON, memory in bytes")
        # So that a run's config.yaml, which holds what `fit` was called with, is understood.
        parser.add_method_arguments(self.trainer_class, "fit", skip=self.subcommands()["fit"])

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule, self.model = self.config_init["data"], self.config_init["model"]

    def plan(self) -> Plan:
        """The plan of the configuration.

        Raises:
            UserError: if its layout or precision cannot be planned.
        """
        trainer, data = self.config_init["trainer"], self.datamodule
        devices = self.config["devices"]
        if devices is None:
            devices = count_devices(trainer["devices"], trainer["num_nodes"])
        layout = read_layout(trainer["strategy"], devices)
        precision = read_precision(trainer["precision"])
        batch = Batch(data.vocab_size, data.context_length, data.batch_size, trainer["accumulate_grad_batches"])
        return plan_model(self.model, layout, precision, batch, "cpu" if trainer["accelerator"] == "cpu" else "cuda")


def number(count: float, billion: str = "B") -> str:
    """Three digits and a unit: 1.66 B."""
    for unit, size in (("T", 1e12), (billion, 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def table(plan: Plan) -> str:
    """The plan as lines of text."""
    layout, batch, flops, memory = plan.layout, plan.batch, plan.flops, plan.memory
    split = {
        "one device": "one device",
        "ddp": f"{layout.devices} devices, each with the whole model",
        "sharded": f"{layout.devices} devices, {layout.shards} shards"
        + (f", {layout.replicas} replicas" if layout.replicas > 1 else "")
        + (f", {layout.tensor_parallel} share heads and channels" if layout.tensor_parallel > 1 else ""),
    }[layout.strategy]
    lines = [
        f"{plan.title}, vocabulary {batch.vocab_size}, context {batch.tokens}",
        f"{split}, {plan.precision.name}",
        "",
        row("parameters", number(plan.total), f"{number(plan.non_embedding)} without embedding and head"),
        *([row("  active", number(plan.active), "of each token: the experts chosen for it")] if plan.idle else []),
        *(row(f"  {kind}", number(count)) for kind, count in plan.parameters.items()),
        "",
        row("FLOPs per token", number(flops.per_token, "G"), f"of which forward {number(flops.forward, 'G')}"),
        row("  attention scores", f"{plan.scores_share:.1%}", "counted causally: half of the full matrix"),
        "",
        row("GiB per device", gib(memory.peak), f"for micro-batches of {batch.rows} x {batch.tokens} tokens"),
        *(
            row(f"  {name}", gib(size), remark)
            for name, size, remark in (
                ("parameters", memory.parameters, ""),
                ("gradients", memory.gradients, ""),
                ("AdamW's moments", memory.optimizer, ""),
                ("averaged weights", memory.averages, ""),
                ("buckets of DDP", memory.buckets, "a second copy of the gradients"),
                ("gathered parameters", memory.gathered, "two blocks, and what stands outside the blocks"),
                ("gathered gradients", memory.gathered_gradients, ""),
                ("buffers", memory.buffers, "rotary angles"),
                ("copies of weights", memory.weight_copies, "for the products, kept by autocast"),
                ("activations", memory.activations, activations_remark(plan)),
                ("logits", memory.logits, "of the loss and the head at work, at their peak"),
            )
            if size
        ),
        row("  at the loss", gib(memory.at_the_loss), "all activations, no gradients unless accumulated"),
        row("  after backward", gib(memory.after_backward), "all gradients, no activations"),
        "",
        row("tokens per step", number(plan.tokens_per_step),
            f"{batch.rows} x {batch.tokens}, {batch.accumulated} accumulated, {layout.data_parallel} with other data"),
    ]  # fmt: skip
    return "\n".join(lines)


def activations_remark(plan: Plan) -> str:
    """How they were counted, and what they would be otherwise."""
    named = {True: "with activation checkpointing", False: "without activation checkpointing"}
    other = not plan.checkpointing
    return f"eager, {named[plan.checkpointing]}; {named[other]} {gib(plan.activations[other])}"


def gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def row(name: str, value: str, remark: str = "") -> str:
    return f"{name:<22}{value:>10}  {remark}".rstrip()


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks plan`."""
    if answer := short_help(command, arguments):
        print(answer)
        return
    cli = command_line(full_help(arguments), run=False, cli=PlanCLI)
    assert isinstance(cli, PlanCLI)
    plan = cli.plan()
    print(json.dumps(plan.to_dict(), indent=2) if cli.config["json"] else table(plan))
