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
    """Number of clients with which each client shares masks and secrets, even; refused where an upload could be read
    with a probability above 2⁻⁴⁰, if as many clients as `corrupt_share` says cooperate with the server. Protects only
    against a server that follows the protocol. Unset: all clients of its group."""
    minimum_group: Annotated[int, Field(ge=2)] = 3
    """Smallest number of uploads in a sum: the sum of one upload is that upload."""
    corrupt_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest share of the clients that may cooperate with the server, which `threshold` and `neighbors` must
    withstand."""

    def __post_init__(self) -> None:
        if self.neighbors is not None and self.neighbors % 2:
            raise GenfedError(f"secure_aggregation.neighbors = {self.neighbors}: an even number is needed")
        # Then any two sets of that size have an honest client in common, which signs one list of survivors only.
        if self.threshold <= (least := (1 + self.corrupt_share) / 2):
            raise GenfedError(
                f"secure_aggregation.threshold = {self.threshold:g}: more than {least:g} is needed while "
                f"corrupt_share = {self.corrupt_share:g} of the clients may cooperate with the server"
            )
        # Else the uploads between two dropped clients of the ring could be summed apart from the others.
        if self.neighbors is not None and self.needed(self.neighbors) <= (half := self.neighbors // 2 + 1):
            raise GenfedError(
                f"secure_aggregation.threshold = {self.threshold:g} with neighbors = {self.neighbors}: more than "
                f"{half} of {self.neighbors + 1} must be needed; raise one of them"
            )

    @property
    def agrees(self) -> bool:
        """Whether the clients of a group agree on the list of survivors. With few neighbors none knows them all."""
        return self.neighbors is None

    def needed(self, neighbors: int) -> int:
        """Returns how many of a client and its `neighbors` must reply to the end of a round."""
        return round_up_share(self.threshold, neighbors + 1)

    def quorum(self, neighbors: int) -> int:
        """Returns how many of a client and its `neighbors` must be in a sum, as far as the client can know."""
        knows_all = self.neighbors is None or neighbors < self.neighbors
        return max(self.needed(neighbors), self.minimum_group if knows_all else 2)
