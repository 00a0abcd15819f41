"""What the section on privacy says of protection comes from the phases."""

from genfed.audits.findings import Audits, Shared
from genfed.report.privacy_section import privacy


def test_protection_is_what_phases_say() -> None:
    sent = (
        Shared("local", "train", "", ""),
        Shared("bare", "train", "classifier", "classifier (averaged)"),
        Shared("both", "features", "extractor", "extractor (averaged)", "Gaussian noise, ε = 3 at δ = 1e-5"),
        Shared("both", "joint", "classifier", "classifier (averaged)"),
        Shared("full", "train", "classifier", "classifier (added up)", "only the sum can be read"),
    )
    assert privacy(Audits(sent, ())).protection == [
        "local. No client sends anything.",
        "bare. train: no noise is added (ε = ∞), and the server can read every upload.",
        "both. features: Gaussian noise, ε = 3 at δ = 1e-5; joint: no noise is added (ε = ∞), and the server can read "
        "every upload.",
        "full. train: only the sum can be read.",
    ]
