"""Pretrained weights with new parts: the first loss is the original's. On tiny models, and on SmolLM2's files."""

from pathlib import Path

import pytest
import torch
import yaml

from sinks.cli import main
from sinks.families.start_from import start
from sinks.families.stored import instantiate, stored_model
from sinks.record import RunFolder
from tests.interop.shapes import tiny
from tests.interop.test_commands import SMALL, VOCABULARY

ROOT = Path(__file__).parents[2]
VARIANTS = sorted(ROOT.glob("experiments/variants/retrofit-*.yaml"))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama-tied", "qwen3-windows-biases")]


@pytest.mark.parametrize("name", ["gpt-oss", *SLOW])
def test_an_imported_model_trains_on_from_its_own_loss(name: str, tmp_path: Path) -> None:
    tiny(name, vocab_size=VOCABULARY).save_pretrained(tmp_path / "model")
    assert main(["import", str(tmp_path / "model"), *SMALL, "--run.dir", str(tmp_path / "run")]) == 0
    eps = stored_model(tmp_path / "run")[0].decoder.head_norm.norm.eps  # type: ignore[union-attr]
    fit = ["fit", "-c", str(tmp_path / "run/config.yaml"), f"--model.start_from={tmp_path / 'run'}"]
    fit += ["--trainer.max_steps=1", "--trainer.log_every_n_steps=1"]
    gates = ["--model.attention_gate=IdentityElementwiseGate", "--model.norm=IdentityGatedNorm"]
    gates += ["--model.norm.rank=4", "--model.norm.norm=PreAffine", f"--model.norm.norm.init_args.eps={eps}"]
    first = []
    for folder, more in {"control": [], "gates": gates}.items():
        assert main([*fit, *more, "--run.dir", str(tmp_path / folder)]) == 0
        first.append(RunFolder(tmp_path / folder).series("train/loss")[1][0])
    assert first[0] == first[1]


@pytest.mark.models
@torch.no_grad()
def test_the_experiment_starts_from_smollm2_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    data, run = ROOT / "experiments/data/smollm2-text.yaml", tmp_path / "run"
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"Text {i} of a few hundred tokens. " * 80)
    sources = [f"--data.sources=[{tmp_path}]", f"--data.folder={tmp_path / 'data'}"]
    assert main(["import", "smollm2", "-c", str(data), *sources, "--run.dir", str(run)]) == 0
    original = stored_model(run)[0]
    rows = torch.randint(0, original.vocab_size, (1, 33), generator=torch.Generator().manual_seed(0))
    expected = original.loss(rows)
    section = yaml.safe_load((ROOT / "experiments/models/smollm2.yaml").read_text())["model"]
    for file in VARIANTS:
        options = yaml.safe_load(file.read_text())["model"]["init_args"]
        model, _ = instantiate(
            {"class_path": section["class_path"], "init_args": section["init_args"] | options},
            yaml.safe_load(data.read_text())["data"],
        )
        model.configure_model()
        assert model.decoder is not None
        start(model.decoder, run)
        assert torch.equal(model.loss(rows), expected), file.name
