"""The stages in order of value, and how the minutes are divided among them."""

from dataclasses import dataclass

from sinks.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage: a module with `run(context) -> Iterator[dict]`, a growing result, and `markdown(result) -> str`.

    Args:
        letter: selects it.
        name: part of its file names.
        module: import path.
        least: minimum minutes for a result: imports, compilation, one measurement.
        weight: its fraction of the minutes that remain once every stage has its minimum.
    """

    letter: str
    name: str
    module: str
    least: float
    weight: float

    @property
    def file(self) -> str:
        return f"{self.letter}-{self.name}"


# In run order. Numbers of a wrong kernel are worthless; the training step decides most goals; the kernel tables explain
# them; training turns every minute into tokens, so it has the largest weight; tiles, a candidate that has never run and
# several GPUs can wait for another run.
STAGES = (
    Stage("a", "correctness", "benchmarks.gpu_report.correctness", least=1.0, weight=0.10),
    Stage("d", "step", "benchmarks.gpu_report.step", least=2.0, weight=0.20),
    Stage("b", "kernels", "benchmarks.gpu_report.kernels", least=1.5, weight=0.15),
    Stage("e", "training", "benchmarks.gpu_report.training", least=3.0, weight=0.40),
    Stage("c", "tiles", "benchmarks.gpu_report.tiles", least=1.0, weight=0.10),
    Stage("g", "specialized", "benchmarks.gpu_report.specialized", least=1.0, weight=0.05),
    Stage("f", "parallel", "benchmarks.gpu_report.parallel", least=1.0, weight=0.05),
)


def chosen(letters: str | None) -> list[Stage]:
    """The stages of comma-separated letters, in run order; all by default.

    Raises:
        UserError: if a letter is not a stage.
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
    """Minutes of each stage by letter, a function of the budget, so that the same command gives the same plan.

    In order of value each stage gets its minimum, until too little is left for one: it and all later ones get none. The
    remainder is divided by weight.
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
