"""Distributions of rows whose variables (columns, or several together) are drawn one after another."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from genfed.core.rng import stream
from genfed.generators.row_generator import LEAST_PROBABILITY, ROWS, UNKNOWN, RowNetwork, draw


class SequentialRowNetwork(RowNetwork):
    """A network that draws the variables of a row one after another, each given those before it.

    A condition is fulfilled by particles (Gordon, Salmond, Smith, 1993): 4,096 rows are drawn together. At a variable
    with a condition, each row draws one of the allowed values, and the rows are drawn again in proportion to the
    probability that it had been allowed. Where variables with conditions come first, each with one allowed value, this
    is exact; otherwise it is the better the less rare the condition is.
    """

    chunk = ROWS
    """Rows that are drawn in the same order of variables."""

    @abstractmethod
    def order(self, given: list[int], rng: torch.Generator) -> list[int]:
        """Returns the variables in the order in which they are drawn; `given`: those with conditions."""

    @abstractmethod
    def predict(self, variable: int, y: Tensor, codes: Tensor) -> Tensor:
        """Returns probabilities of the codes of a variable: float64 [n, codes].

        Args:
            variable: The variable.
            y: The labels [n].
            codes: The codes of all variables [n, variables], −1 where one is not known yet.
        """

    @torch.no_grad()
    def draw_bins(self, y: Tensor, rng: torch.Generator, allowed: Tensor | None) -> Tensor:
        y = y.cpu()
        if allowed is None:
            parts = [self._draw(some, rng, [None] * len(self.binned.sizes))[0] for some in torch.split(y, self.chunk)]
            return torch.cat(parts)
        drawn = torch.empty(len(y), len(self.binned.sizes), dtype=torch.int64)
        for label in torch.unique(y).tolist():
            rows = (y == label).nonzero()[:, 0]
            for some in torch.split(rows, self.chunk):
                drawn[some] = self._draw_allowed(label, len(some), rng, allowed)[0]
        return drawn

    @torch.no_grad()
    def log_allowed(self, allowed: Tensor) -> Tensor:
        rng = stream(0, "allowed")  # the same share at each call: it is a number, not a draw
        shares = [self._draw_allowed(label, 1, rng, allowed)[1] for label in range(len(self.prior))]
        return torch.tensor(shares, dtype=torch.float64) + self.prior.cpu().double().log()

    def _draw_allowed(self, label: int, n: int, rng: torch.Generator, allowed: Tensor) -> tuple[Tensor, float]:
        """Draws n ≤ 4,096 rows of a class [n, variables]. Returns them, and the logarithm of the share of the class's
        rows that are allowed.
        """
        parts = torch.split(allowed, self.binned.sizes)
        wanted = [None if bool((part == 1).all()) else part for part in parts]
        return self._draw(torch.full((ROWS,), label), rng, wanted, n)

    def _draw(
        self, y: Tensor, rng: torch.Generator, wanted: list[Tensor | None], n: int | None = None
    ) -> tuple[Tensor, float]:
        """Draws a row for each label; see `_draw_allowed`.

        Args:
            y: The labels.
            rng: Source of the draws.
            wanted: How much of each code of a variable is allowed. None: all of all.
            n: Number of rows that are needed once no further variable has a condition. None: all.
        """
        codes, total = torch.full((len(y), len(self.binned.sizes)), UNKNOWN), 0.0
        left = [variable for variable, part in enumerate(wanted) if part is not None]
        for variable in self.order(left, rng):
            table = self.predict(variable, y, codes)
            if (part := wanted[variable]) is not None:
                table = table * part
                mass = table.sum(1)
                share = float(mass.mean())
                total += math.log(share) if share > 0 else -math.inf
                again = torch.multinomial(mass if share > 0 else torch.ones_like(mass), len(y), True, generator=rng)
                table, codes = table[again], codes[again]
                left.remove(variable)
            codes[:, variable] = draw(table, rng)
            if not left and n is not None:
                y, codes = y[:n], codes[:n]
        return codes, total

    @torch.no_grad()
    def log_joint(self, x: Tensor) -> Tensor:
        starts = torch.tensor(self.binned.starts)
        order, found = self.order([], stream(0, "order")), []
        for places in torch.split(self.binned.read(x), ROWS):
            known = torch.where(places < self.binned.values, places - starts, UNKNOWN)
            found.append(torch.stack([self._log_rows(known, label, order) for label in range(len(self.prior))], dim=1))
        return torch.cat(found) + self.prior.cpu().double().log()

    def _log_rows(self, known: Tensor, label: int, order: list[int]) -> Tensor:
        """Returns log p(codes | label) of rows [n, variables], −1 where one is not known: float64 [n]."""
        y, codes = torch.full((len(known),), label), torch.full_like(known, UNKNOWN)
        total = torch.zeros(len(known), dtype=torch.float64)
        for variable in order:
            own = known[:, variable]
            chosen = self.predict(variable, y, codes).gather(1, own.clamp_min(0)[:, None])[:, 0]
            total += torch.where(own == UNKNOWN, 0.0, chosen.clamp_min(LEAST_PROBABILITY).log())
            codes[:, variable] = own
        return total
