"""SYNTHETIC run folders for tests: invented numbers, written with the real writer. Nothing here was trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sinks.record import RunFolder, Statistics

STEPS = np.arange(0, 1001, 100)


@dataclass(frozen=True)
class Levels:
    """Where a synthetic variant ends: loss, first-token mass, R, gain at the sink dimension, value norm."""

    loss: float = 1.540
    first: float = 0.86
    score: float = 12.1
    gain: float = 0.23
    value: float = 0.10
    spread: float = 0.03
    extra: tuple[tuple[str, float], ...] = ()
    side: str = "none"
    mechanism: str | None = None
    label: str | None = None
    diverged: bool = False
    paper: str = ""


BACKCOPY = {
    "baseline": Levels(mechanism="none", label="Baseline", paper="Both sinks form."),
    "gated-attention": Levels(
        1.542, 0.09, 11.9, 0.45, 0.79, 0.09, (("gate_mean", 0.41),), "attention", "gated", "Output gate"
    ),
    "sigmoid-attention": Levels(
        1.540, 0.20, 11.7, 0.53, 0.57, 0.1, (), "attention", "unnormalized", "Sigmoid attention"
    ),
    "learnable-sink": Levels(
        1.542,
        0.004,
        11.6,
        0.37,
        0.67,
        0.002,
        (("learned_sink_mass", 0.62),),
        "attention",
        "absorbed",
        "Sink-absorbed, learnable sink (scale 10)",
    ),
    "gated-norm": Levels(
        1.541, 0.86, 5.6, 1.05, 0.09, 0.03, (("norm_gate_mean", 0.47),), "residual", "gated", "GatedNorm"
    ),
    "preaffine": Levels(1.542, 0.86, 6.8, 1.14, 0.09, 0.03, (), "residual", "absorbed", "Sink-absorbed, PreAffine"),
    "clip-input": Levels(
        1.542, 0.32, 4.0, 0.59, 0.54, 0.01, (("clipped_share", 0.012),), "residual", "clipped", "Clip, norm input"
    ),
    "clip-1000": Levels(
        1.540,
        0.86,
        12.1,
        0.23,
        0.10,
        0.03,
        (("clipped_share", 0.0),),
        "residual",
        "clipped",
        "Clipped, residual stream at 1000",
    ),
    "dyt": Levels(1.876, 0.02, 10.9, 0.97, 0.95, 0.01, (), "residual", "unnormalized", "DyT"),
    "gate-and-gated-norm": Levels(
        1.537,
        0.64,
        5.8,
        0.89,
        0.52,
        0.04,
        (("gate_mean", 0.5), ("norm_gate_mean", 0.5)),
        "both",
        "gated",
        "Gated, attention gate and GatedNorm",
    ),
}


def write_run(
    path: Path,
    variant: str,
    seed: int,
    levels: Levels,
    layers: int = 2,
    heads: int = 1,
    d_model: int = 128,
    statistics: bool = True,
    **summary: Any,
) -> RunFolder:
    """One finished synthetic run; keywords override summary keys."""
    rng = np.random.default_rng([seed, *variant.encode()])
    wobble = (seed - 1) * levels.spread if seed < 3 else rng.uniform(-1, 1) * levels.spread
    first = float(np.clip(levels.first + wobble, 0, 1))
    score = levels.score * (1 + wobble)
    folder = RunFolder(path)
    folder.write_config(yaml.safe_dump({"seed_everything": seed, "model": {"class_path": f"sinks.{variant}"}}))
    folder.write_provenance(
        {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "versions": {"python": "3.11.0", "torch": "0.synthetic", "lightning": "0.synthetic"},
            "device": "synthetic machine",
            "threads": 1,
            "platform": "none",
            "command": ["sinks", "fit", "-c", f"{variant}.yaml", "--run.dir", str(path)],
            "started": "2026-01-01T00:00:00+00:00",
        }
    )
    rise = 1 / (1 + np.exp(-(STEPS - 250) / 70))
    lines = []
    for step, share in zip(STEPS.tolist(), rise.tolist(), strict=True):
        noise = rng.normal(0, 0.01)
        lines.append(
            {
                "step": step,
                "tokens": step * 1024,
                "wall_s": step * 0.03,
                "validation/loss": levels.loss + 2 * (1 - share),
                "validation/attention/first_token_mass_max_head": float(
                    np.clip(0.03 + (first - 0.03) * share + noise, 0, 1)
                ),
                "validation/residual/sink_score": 1.3 + (score - 1.3) * share * (1 + noise),
            }
        )
        lines[-1] |= {k.replace("validation/", "train/"): v for k, v in lines[-1].items() if k.startswith("validation")}
    folder.append_metrics(lines)
    if statistics:
        _write_statistics(folder, rng, first, score, rise, layers, heads, d_model)
    values: dict[str, Any] = {
        "variant": variant,
        "seed": seed,
        "config_fingerprint": f"{variant}-{seed}",
        "variant_fingerprint": variant,
        "data_fingerprint": f"data-{seed}",
        "steps": int(STEPS[-1]),
        "tokens": int(STEPS[-1]) * 1024,
        "wall_s": 30.0,
        "tokens_per_second": 34000.0,
        "train_loss": levels.loss,
        "val_loss": levels.loss + wobble * 0.02 + rng.normal(0, 2e-4),
        "first_token_mass": first * 0.6,
        "first_token_mass_max_head": first,
        "sink_ratio_0.3": 0.5,
        "value_norm_ratio": levels.value,
        "value_norm_ratio_max_head": levels.value,
        "residual_max_abs": 30.0,
        "residual_max_over_median": 19.5,
        "residual_sink_score": score,
        "gain_at_sink": levels.gain,
        "learned_sink_mass": None,
        "gate_mean": None,
        "norm_gate_mean": None,
        "clipped_share": None,
        "diverged": levels.diverged,
        "parameters": 400_000,
    }
    values |= dict(levels.extra)
    if levels.diverged:
        values |= {"val_loss": float("nan"), "steps": 300}
    folder.finish(values | summary)
    return folder


def _write_statistics(
    folder: RunFolder,
    rng: np.random.Generator,
    first: float,
    score: float,
    rise: np.ndarray,
    layers: int,
    heads: int,
    d_model: int,
) -> None:
    names = [f"blocks.{i}.{part}.norm.input" for i in range(layers) for part in ("attention", "feed_forward")]
    names.append("head.norm.input")
    peak = np.full((layers, heads), 0.05)
    peak += rng.uniform(0, 0.3, peak.shape) * first
    peak[layers - 1, rng.integers(heads)] = first
    mass = 0.03 + (peak[None] - 0.03) * rise[:, None, None]
    magnitude = np.exp(rng.normal(0, 0.25, (len(names), d_model)))
    magnitude /= np.median(magnitude, axis=1, keepdims=True)
    magnitude[1:, 7] = score * np.linspace(0.6, 1, len(names) - 1)
    magnitude[1:, 19] = score * 0.5
    arrays = {
        "attention/first_token_mass": mass.clip(0, 1).astype(np.float32),
        "attention/value_norm_ratio": np.ones((len(rise), layers, heads), dtype=np.float32),
        "attention/effective_weight": (1 - 0.8 * mass.clip(0, 1)).astype(np.float32),
        "attention/lost_first": (0.8 * mass.clip(0, 1)).astype(np.float32),
        "residual/mean_abs": np.repeat(magnitude[None], len(rise), axis=0).astype(np.float32),
        "residual/sink_score": np.repeat(magnitude.max(1)[None], len(rise), axis=0).astype(np.float32),
    }
    sites = {"residual": names, "norm": names, "attention": [f"blocks.{i}.attention" for i in range(layers)]}
    for stage in ("train", "validation"):
        folder.append_statistics(stage, Statistics(STEPS.copy(), arrays, sites))


def write_ablation(
    root: Path, variants: dict[str, Levels], seeds: tuple[int, ...] = (0, 1, 2), described: bool = True, **shape: Any
) -> Path:
    """`root/<variant>/seed<k>/` for every variant and seed, and ablation.yaml."""
    for name, levels in variants.items():
        for seed in seeds:
            write_run(root / name / f"seed{seed}", name, seed, levels, **shape)
    if described:
        content = {
            "name": root.name,
            "title": "Synthetic runs (invented numbers)",
            "baseline": "baseline",
            "steps": int(STEPS[-1]),
            "seeds": list(seeds),
            "recipe_source": "invented for tests",
            "variants": {
                name: {
                    "label": levels.label or name,
                    "side": levels.side,
                    "paper": levels.paper,
                    "recipe": {"val_loss": levels.loss, "first_token_mass_max_head": levels.first},
                    **({"mechanism": levels.mechanism} if levels.mechanism else {}),
                }
                for name, levels in variants.items()
            },
        }
        (root / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return root
