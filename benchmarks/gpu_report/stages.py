"""The stages, most valuable first, and how the minutes are shared among them."""

from dataclasses import dataclass

from sinks.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage: a module with `run(context) -> Iterator[dict]`, a growing result, and `markdown(result) -> str`.

    Args:
        letter: what it is chosen by.
        name: part of its files' names.
        module: import path.
        least: minutes without which it would show nothing: imports, compilation, one measurement.
        weight: its part of the minutes that are left once every stage has its least.
    """

    letter: str
    name: str
    module: str
    least: float
    weight: float

    @property
    def file(self) -> str:
        return f"{self.letter}-{self.name}"


# In the order in which they run. Numbers of a wrong kernel are worth nothing; the training step decides most goals; the
# tables of the kernels say why; training turns every minute it gets into tokens, so it has the largest weight; tiles
# and several GPUs can wait for another run.
STAGES = (
    Stage("a", "correctness", "benchmarks.gpu_report.correctness", least=1.0, weight=0.10),
    Stage("d", "step", "benchmarks.gpu_report.step", least=2.0, weight=0.20),
    Stage("b", "kernels", "benchmarks.gpu_report.kernels", least=1.5, weight=0.15),
    Stage("e", "training", "benchmarks.gpu_report.training", least=3.0, weight=0.40),
    Stage("c", "tiles", "benchmarks.gpu_report.tiles", least=1.0, weight=0.10),
    Stage("f", "parallel", "benchmarks.gpu_report.parallel", least=1.0, weight=0.05),
)


def chosen(letters: str | None) -> list[Stage]:
    """The stages of comma-separated letters, in the order in which they run; all if none are given.

    Raises:
        UserError: if a letter names no stage.
    """
    known = {stage.letter for stage in STAGES}
    wanted = known if letters is None else set(letters.split(","))
    if not wanted <= known:
        raise UserError(
            f"--stages has {', '.join(sorted(wanted - known))!r}, but stages are "
            f"{', '.join(f'{s.letter} ({s.name})' for s in STAGES)}: give e.g. a,d"
        )
    return [stage for stage in STAGES if stage.letter in wanted]


def shares(stages: list[Stage], budget: float) -> dict[str, float]:
    """Minutes of each stage by letter, from the budget alone, so that the same command plans the same.

    In order of value each gets its least, until one is reached for which too little is left: that one and all after it
    get none. What is left over is divided by weight.
    """
    given: dict[str, float] = {}
    left = budget
    for stage in stages:
        if stage.least > left:
            break
        given[stage.letter] = stage.least
        left -= stage.least
    total = sum(stage.weight for stage in stages if stage.letter in given)
    return {
        stage.letter: given[stage.letter] + left * stage.weight / total if stage.letter in given else 0.0
        for stage in stages
    }
