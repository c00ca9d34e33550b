"""`sinks import`: a run folder at step 0 from a Hugging Face checkpoint."""

import os
import tempfile
from pathlib import Path

import lightning
import yaml

from sinks.cli.training import TrainingCLI, command_line
from sinks.described import section_of
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.interop.decoder_arguments import arguments_of
from sinks.interop.decoder_import import load_weights, read_config
from sinks.interop.load import folder_of
from sinks.parallel.checkpoint_io import RunCheckpointIO
from sinks.record.checkpoints import checkpoint_name
from sinks.record.lock import run_lock
from sinks.record.provenance import provenance
from sinks.runs.train import identify, recorder_of

USAGE = "sinks import MODEL -c DATA.yaml --run.dir DIR [--model.OPTION VALUE ...]"


class ImportCLI(TrainingCLI):
    """The configuration of `sinks fit`; nothing is trained."""

    fitting = False

    def write(self, source: Path, vocab_size: int) -> Path:
        """Write the run folder; return its checkpoint.

        Args:
            source: folder with the weights.
            vocab_size: of the imported model.

        Raises:
            UserError: if the data have another vocabulary, the folder holds a run, or the weights do not fit.
        """
        model, data, folder = self.model, self.datamodule, self.folder
        if data.vocab_size != vocab_size:
            raise UserError(
                f"data.vocab_size is {data.vocab_size}, but the model has {vocab_size} token ids: give data of its "
                f"tokenizer, and --data.vocab_size {vocab_size}"
            )
        if folder.begun or folder.finished:
            raise UserError(f"{folder.path} holds a run: choose another --run.dir")
        data.prepare_data()
        identify(self.trainer, model, data, yaml.safe_load(self.text()))
        load_weights(model, source)
        path = folder.checkpoints / checkpoint_name(0)
        with run_lock(folder.path):
            folder.write_provenance(
                provenance() | recorder_of(self.trainer).identity | {"imported_from": str(source.resolve())}
            )
            folder.write_config(self.text(skip_link_targets=True))
            RunCheckpointIO().save_checkpoint(untrained(model), path)
            os.symlink(path.name, folder.last_link)
        return path


def untrained(model: CausalLM) -> dict[str, object]:
    """A checkpoint of step 0 in Lightning's format; optimizers and schedules start anew from it."""
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": model.state_dict(),
        "optimizer_states": [],
        "lr_schedulers": [],
    }


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks import`."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise UserError(f"the model to import is missing: {USAGE}")
    if arguments[0] in ("-h", "--help"):
        print(f"usage: {USAGE}\n\nOptions are those of `sinks fit`, see `sinks fit --help-all`.")
        return
    source = folder_of(arguments[0])
    config = read_config(source)
    imported = CausalLM(config["vocab_size"], config["max_position_embeddings"], **arguments_of(config))
    with tempfile.TemporaryDirectory() as scratch:
        section = Path(scratch) / "imported.yaml"
        section.write_text(yaml.safe_dump({"model": section_of(imported, "vocab_size", "context_length")}))
        cli = command_line(["-c", str(section), *arguments[1:]], run=False, cli=ImportCLI)
    assert isinstance(cli, ImportCLI)
    print(
        f"{cli.write(source, config['vocab_size'])}  {imported.architecture.n_layers} layers of {config['model_type']}"
    )
