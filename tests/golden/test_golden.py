"""Numbers stay as they are, to the bit: what runs end with is compared with what they ended with before."""

from pathlib import Path

import pytest

from tests.golden.cases import PLAIN, Refusal, Table, cases, golden, machine, outcome

CASES, GOLDEN = cases(), golden()
ANEW = "if that is meant, write the golden values anew: python -m tests.golden"
TOLERANCE = 0.02


def test_every_case_has_a_value() -> None:
    there = GOLDEN["cases"]
    new, gone = sorted(CASES.keys() - there.keys()), sorted(there.keys() - CASES.keys())
    assert not new, f"no golden value of {', '.join(new)}; {ANEW}"
    assert not gone, f"golden values of what is no more: {', '.join(gone)}; {ANEW}"
    refused = [case for case, value in there.items() if case.startswith(PLAIN) and value is None]
    assert not refused, f"{', '.join(refused)}: a method runs where nothing is asked of it"


@pytest.mark.parametrize("case", sorted(CASES))
def test_ends_as_before(case: str, tmp_path: Path) -> None:
    check(case, CASES[case](), tmp_path / "run")


@pytest.mark.usefixtures("in_pool")
@pytest.mark.parametrize("case", [case for case in sorted(CASES) if case.startswith(PLAIN)])
def test_ends_as_before_with_workers(case: str, tmp_path: Path) -> None:
    check(case, CASES[case]() | {"compute": {"workers": 2}}, tmp_path / "run")


def check(case: str, config: Table, out: Path) -> None:
    assert case in GOLDEN["cases"], f"no golden value of {case}; {ANEW}"
    expected = GOLDEN["cases"][case]
    if expected is None:
        with pytest.raises(Refusal):
            outcome(config, out)
        assert not out.exists(), "refused too late"
        return
    found = outcome(config, out)
    message = f"{case} ends otherwise than before; {ANEW}"
    if machine() == GOLDEN["machine"]:
        assert found == expected, message
    *counts, total = found["summary"]
    *counts_before, total_before = expected["summary"]
    assert counts == counts_before, message
    # Another processor or torch adds up in another order, and training makes more of the last bits.
    assert total == pytest.approx(total_before, rel=TOLERANCE), message
