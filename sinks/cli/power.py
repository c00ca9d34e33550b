"""`sinks power`: how many seeds a loss difference needs, and what a number of seeds can see."""

from pathlib import Path

EFFECTS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02)
SEEDS = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30)


def power(
    directory: Path | None = None,
    sd: float | None = None,
    effect: float | None = None,
    seeds: int | None = None,
    power: float = 0.8,
    alpha: float = 0.05,
) -> None:
    """Print the seeds that an effect needs in a two-sided paired t test, and the smallest effect that seeds find.

    Args:
        directory: of finished runs, <variant>/seed<k>/, from which the standard deviation is measured, if not given.
        sd: standard deviation of a paired difference: variant minus baseline, of the same seed.
        effect: to be found; several if not given.
        seeds: that there are; several if not given.
        power: probability to find the effect.
        alpha: probability to find one where there is none.
    """
    from sinks.errors import UserError, require
    from sinks.report.tables import aligned
    from sinks.stats.paired import seeds_needed, smallest_effect

    for name, value in (("power", power), ("alpha", alpha)):
        require(name, value, above=0, below=1, remedy="give e.g. 0.8 and 0.05")
    require("power", power, above=alpha, remedy=f"give one above alpha, {alpha}")
    if effect is not None:
        require("effect", effect, above=0, remedy="give e.g. 0.005")
    if seeds is not None:
        require("seeds", seeds, at_least=2, remedy="one seed has no spread: give e.g. 3")
    if sd is None:
        if directory is None:
            raise UserError("neither a standard deviation nor a folder of runs is given: give --sd or --directory")
        sd, source = measured(directory)
    else:
        require("sd", sd, above=0, remedy="give e.g. 0.0056")
        source = "given"
    print(f"standard deviation of a paired difference: {sd:.2g} ({source})\n")
    needed = [(f"{each:g}", seeds_needed(each, sd, power, alpha)) for each in ([effect] if effect else EFFECTS)]
    rows = [["effect", "seeds"], *([each, str(n or "above 100000")] for each, n in needed)]
    print("\n".join(aligned(rows, set())), end="\n\n")
    found = [[str(n), f"{smallest_effect(sd, n, power, alpha):.2g}"] for n in ([seeds] if seeds else SEEDS)]
    print("\n".join(aligned([["seeds", "smallest visible effect"], *found], set())))


def measured(directory: Path) -> tuple[float, str]:
    """The pooled standard deviation of the paired loss differences of an ablation, and what it comes from.

    Raises:
        UserError: if no variant has two seeds in common with the baseline.
    """
    from sinks.errors import UserError
    from sinks.report import compare, load_ablation

    noise = compare(load_ablation(directory)).noise
    if noise is None or noise.sd == 0:
        raise UserError(
            f"{directory} has no variant with two seeds in common with a baseline, and losses that differ: train more "
            "seeds, or give --sd"
        )
    return noise.sd, f"measured: {noise.rows} variants, {noise.degrees} degrees of freedom"
