"""Where a sublayer's update joins the residual stream."""

from torch import Tensor, nn

from sinks.models.taps import Report


class ResidualAdd(nn.Module):
    """residual + update, [B, T, D] each; reports both.

    Args:
        site: name under which they are reported, e.g. `blocks.0.attention.update`.
    """

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.report = Report()

    def forward(self, residual: Tensor, update: Tensor) -> Tensor:
        self.report(residual=residual, update=update)
        return residual + update
