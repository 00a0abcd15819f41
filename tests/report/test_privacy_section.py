"""What the section on privacy says of protection comes from the phases."""

from genfed.audits.findings import Audits, Exchanged
from genfed.report.privacy_section import build_privacy_section


def test_protection_is_what_phases_say() -> None:
    sent = (
        Exchanged("local", "train", "", ""),
        Exchanged("bare", "train", "classifier", "classifier (averaged)"),
        Exchanged("both", "features", "extractor", "extractor (averaged)", "Gaussian noise, ε = 3 at δ = 1e-5"),
        Exchanged("both", "joint", "classifier", "classifier (averaged)"),
        Exchanged("full", "train", "classifier", "classifier (added up)", "only the sum can be read"),
    )
    assert build_privacy_section(Audits(sent, ())).protection == [
        "local. No client sends anything.",
        "bare. train: no noise is added (ε = ∞), and the server can read every upload.",
        "both. features: Gaussian noise, ε = 3 at δ = 1e-5; joint: no noise is added (ε = ∞), and the server can read "
        "every upload.",
        "full. train: only the sum can be read.",
    ]
