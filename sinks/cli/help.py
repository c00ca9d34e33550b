"""The short help of the commands that take a whole training configuration; `--help-all` has every option."""

FILES = (
    "-c experiments/variants/gated-both.yaml -c experiments/models/backcopy.yaml \\\n"
    "      -c experiments/data/backcopy.yaml -c experiments/trainers/cpu.yaml"
)
ABOUT = {
    "fit": f"""\
usage: sinks fit [-c FILE ...] [--SECTION.OPTION VALUE ...] --run.dir DIR

Train a variant and record it in a run folder. The same command again resumes an interrupted run.

Example:
  sinks fit {FILES} \\
      --run.dir runs/gated --trainer.max_steps 200
""",
    "validate": """\
usage: sinks validate -c DIR/config.yaml [-c FILE ...] [--SECTION.OPTION VALUE ...]

Measure a checkpoint, the last one of a run folder if none is given: loss and sink statistics, written below
validation/ of the folder.

Example:
  sinks validate -c runs/gated/config.yaml --statistics.sink_dimensions 2
""",
    "plan": f"""\
usage: sinks plan [-c FILE ...] [--SECTION.OPTION VALUE ...] [--devices N] [--json]

Count what a configuration of `sinks fit` costs: parameters, memory and operations, allocating nothing.

Example:
  sinks plan {FILES} --devices 8

  --devices N                            devices of all machines; the trainer section's by default
  --json                                 print JSON, memory in bytes
""",
}
SECTIONS = """\
Files are YAML with the sections below, merged in their order. An option on the command line wins over every file.

  -c FILE, --config FILE                 a configuration file; may be repeated
  --print_config                         print the configuration that results, and exit
  --seed_everything N                    seed of weights; the data has its own

run: the run folder
  --run.dir DIR                          where it is
  --run.variant NAME                     name of the run in reports

model: the family, and what it is made of
  --model NAME                           CausalLM, Baseline, NoNorm, Clipped, SinkAbsorbed, Gated, or an import path
  --model.help NAME                      all of its options
  --model.architecture.d_model N         width; also n_layers, n_heads, n_kv_heads, head_dim, ffn_hidden, position
  --model.optimization.lr X              peak learning rate; also weight_decay, warmup_steps, schedule
  --model.normalizer NAME                of CausalLM, as the next ones: what turns attention scores into weights
  --model.attention_gate NAME            gate on the outputs of attention
  --model.norm NAME                      norm of every block; also head_norm, output_norm
  --model.feed_forward NAME              feed-forward layer
  --model.execution.compile true         run torch.compile

data: rows of tokens
  --data NAME                            Backcopy (synthetic), Text, or an import path
  --data.help NAME                       all of its options
  --data.context_length N                tokens of a row
  --data.batch_size N                    rows of a batch, per process

trainer: Lightning's Trainer
  --trainer.max_steps N                  optimizer steps
  --trainer.val_check_interval N         batches between validations
  --trainer.log_every_n_steps N          steps between logged ones
  --trainer.accelerator NAME             cpu, gpu or auto
  --trainer.devices N                    devices of one machine; --trainer.num_nodes for several machines
  --trainer.precision NAME               32-true, bf16-mixed, ...
  --trainer.strategy NAME                how a run is distributed: experiments/trainers has ddp.yaml and fsdp2.yaml
  --trainer.accumulate_grad_batches N    batches in an optimizer step

statistics: what is read of the running model
  --statistics.interval N                optimizer steps between sampled ones
  --statistics.sites LIST                patterns of sites, e.g. '["blocks.0.*"]'
  --statistics.leave_out LIST            groups to skip

checkpoints, progress, notes: what is saved and printed
  --checkpoints.interval N               optimizer steps between checkpoints
  --checkpoints.keep N                   how many of the newest are kept
  --progress.enabled false               print no lines of progress
  --notes.enabled false                  print no notes after validations
  --ckpt_path FILE                       the checkpoint to start from, or to measure
"""
ALL = "--help-all"


def short_help(command: str, arguments: list[str]) -> str | None:
    """What `--help` prints; None if the arguments do not ask for it.

    Args:
        command: a key of `ABOUT`.
        arguments: that follow it.
    """
    if "-h" not in arguments and "--help" not in arguments:
        return None
    return f"{ABOUT[command]}\n{SECTIONS}\n`sinks {command} {ALL}` lists every option with its type and default."


def full_help(arguments: list[str]) -> list[str]:
    """The arguments with `--help` for `--help-all`: the parser's own help lists everything."""
    return ["--help" if argument == ALL else argument for argument in arguments]
