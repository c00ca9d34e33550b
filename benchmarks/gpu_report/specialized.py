"""Stage g: ranks the warp-specialized forward in Gluon, in a process of its own, as it may not end on its first GPU."""

from collections.abc import Iterator
from typing import Any

from sink_kernels.tiles import SPECIALIZED, Tile, capability_of

from benchmarks.gpu_report import tiles
from benchmarks.gpu_report.stage_context import StageContext

CAPABILITY = (9, 0)


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Time its tiles beside the table's, which alone is timed where it cannot run."""
    cuda = context.device.type == "cuda"
    able = cuda and capability_of(context.device) == CAPABILITY
    candidates: dict[tuple[str, int], tuple[Tile, ...]] = {key: own if able else () for key, own in SPECIALIZED.items()}
    where = "compute capability {}.{}".format(*capability_of(context.device)) if cuda else "a CPU"
    missing = {} if able else {"forward in Gluon": f"it runs on compute capability 9.0 only, this is {where}"}
    for result in tiles.ranked(context, candidates):
        yield result | {"missing": missing}


def markdown(result: dict[str, Any]) -> str:
    """As of stage c."""
    return tiles.markdown(result).replace("# c. Tiles", "# g. The forward in Gluon", 1)
