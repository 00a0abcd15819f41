"""The settings of secure aggregation."""

from typing import Annotated

from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.schedule import round_up_share
from genfed.core.settings import settings


@settings
class SecureAggregation:
    """Secure aggregation of every phase in which clients upload."""

    threshold: Annotated[float, Field(gt=0.5, le=1)] = 2 / 3
    """Share of a client and its neighbors that must reply to the end of a round, rounded up."""
    neighbors: Annotated[int, Field(ge=2)] | None = None
    """Number of clients with which each client shares masks and secrets, even. Unset: all clients of its group."""
    minimum_group: Annotated[int, Field(ge=2)] = 3
    """Smallest number of uploads in a sum: the sum of one upload is that upload."""

    def __post_init__(self) -> None:
        if self.neighbors is not None and self.neighbors % 2:
            raise GenfedError(f"secure_aggregation.neighbors = {self.neighbors}: an even number is needed")
        # Else the uploads between two dropped clients of the ring could be summed apart from the others.
        if self.neighbors is not None and self.needed(self.neighbors) <= (half := self.neighbors // 2 + 1):
            raise GenfedError(
                f"secure_aggregation.threshold = {self.threshold:g} with neighbors = {self.neighbors}: more than "
                f"{half} of {self.neighbors + 1} must be needed; raise one of them"
            )

    def needed(self, neighbors: int) -> int:
        """Returns how many of a client and its `neighbors` must reply to the end of a round."""
        return round_up_share(self.threshold, neighbors + 1)
