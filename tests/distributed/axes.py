"""Every axis of a configuration that changes what is trained or how, as a variant's file and more arguments."""

from tests.distributed.launch import STRATEGIES

Axes = dict[str, tuple[str, list[str]]]
AVERAGE = "--model.averaging={class_path: sinks.families.averaging.%s, init_args: {%s}}"


def files(*names: str) -> Axes:
    return {name: (name, []) for name in names}


# By kind: those of one kind run one after another in the same processes.
AXES: dict[str, Axes] = {
    "attention": files(
        "softpick", "xsa", "xsa-learned", "xsa-learned-from-zero", "xsa-gated", "gated-keys",
        "gated-attention-tensorwise", "gated-attention-truncated", "gated-attention-from-one", "gated-attention-silu",
    ),
    "norms": files(
        "derf", "seednorm", "layer-norm", "gain-free-norm", "single-scalar-norm", "zero-centered-norm", "sandwich",
    ),
    "norm gates": files(
        "gated-norm-from-one", "gated-norm-attention", "gated-norm-feed-forward", "gated-norm-head",
        "gated-norm-tensorwise", "gated-norm-alone",
    ),
    "residual": files("clip-first-token", "clip-other-tokens", "outlier-penalty"),
    "sublayers": files("linear", "hybrid", "hybrid-gated", "moe"),
    "training": {
        "wsd": ("baseline", ["--model.optimization.schedule=wsd", "--model.optimization.decay_fraction=0.5"]),
        "exponential average": ("baseline", [AVERAGE % ("ExponentialAverage", "decay: 0.7")]),
        "mean of the last steps": ("baseline", [AVERAGE % ("MeanOfLast", "fraction: 0.5")]),
        **files("decayed-gains", "zero-centered-norm-decayed", "muon", "gated-both-muon", "gated-both-muon-gates"),
    },
}  # fmt: skip
KIND = {name: kind for kind, axes in AXES.items() for name in axes}
EVERY = {name: axis for axes in AXES.values() for name, axis in axes.items()}


def strategies(name: str) -> list[str]:
    """On two processes; Muon rejects sharded parameters, in tests/families/test_optimizers.py."""
    two = [strategy for strategy, (processes, *_) in STRATEGIES.items() if processes == 2]
    return ["ddp"] if "muon" in name else two
