"""`sinks export`: a run's model as a folder that transformers opens."""

from pathlib import Path


def export(run: Path, folder: Path, tokenizer: Path | None = None) -> None:
    """Write the model of a run's last checkpoint as config.json and safetensors, for AutoModelForCausalLM.

    Args:
        run: a run folder.
        folder: to write; must not exist, or be empty.
        tokenizer: a tokenizer.json, or a folder with one, which is copied.
    """
    from sinks.interop.decoder_export import export as export_model
    from sinks.runs.load import load_run

    config = export_model(load_run(run).model, folder, tokenizer)
    print(f"{folder}  {config['architectures'][0]}")
