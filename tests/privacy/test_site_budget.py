"""The budget of a site over all runs."""

from dataclasses import make_dataclass
from pathlib import Path

from genfed.core.record import save
from genfed.privacy.ledger import Charge
from genfed.privacy.site_budget import BUDGET, SiteLedger, TrialCharges, TrialKey, read_site_ledger


def test_what_a_site_spent_with_an_older_genfed_stays_spent(tmp_path: Path) -> None:
    """Else an operator would delete a file that cannot be read, and give the examples a new budget."""
    trial, charge = TrialKey("run", "fedavg", 0), Charge("train", 0, 0, 0.1, 1.0, 10)
    charges = make_dataclass("Paid", [("bill", TrialKey), ("charges", tuple[Charge, ...])], frozen=True)
    account = make_dataclass("Account", [("paid", tuple[charges, ...])], frozen=True)  # type: ignore[valid-type]
    save(account((charges(trial, (charge,)),)), tmp_path / BUDGET)
    assert read_site_ledger(tmp_path) == SiteLedger((TrialCharges(trial, (charge,)),))
