"""`sinks export`: a run's model as a folder that transformers opens."""

from pathlib import Path


def export(run: Path, folder: Path, tokenizer: Path | None = None) -> None:
    """Write the model of a run's last checkpoint as config.json and safetensors, for AutoModelForCausalLM.

    A model with gates, second gains or learned sinks comes with its code, which a loader must be told to trust.

    Args:
        run: a run folder.
        folder: to write; must not exist, or be empty.
        tokenizer: a tokenizer.json, or a folder with one, which is copied.
    """
    from sinks.interop.decoder_export import export as export_model
    from sinks.interop.decoder_remote import FILE
    from sinks.runs.load import load_run

    config = export_model(load_run(run).model, folder, tokenizer)
    print(f"{folder}  {config['architectures'][0]}")
    if "auto_map" in config:
        print(f"transformers has no such model, {FILE} computes it: load it with trust_remote_code=True")
