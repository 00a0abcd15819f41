import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.errors import GenfedError
from genfed.core.record import from_bytes, pack, to_bytes, unpack
from genfed.core.rng import stream
from genfed.training.low_rank import FactoredWeights, RebuiltMean, apply_update, check_factors, factorize, rebuild

INFO = ClientInfo(0, "a", 1)


def diagonal(*values: float) -> Tensor:
    out = torch.zeros(10, 10)
    out.diagonal()[: len(values)] = torch.tensor(values)
    return out


def rank(weights: FactoredWeights, name: str = "w") -> int | None:
    return weights.left[name].shape[1] if name in weights.left else None


def test_the_fewest_values_that_hold_the_energy_are_kept() -> None:
    """Squares of the singular values: 16, 9, 4, 1 of 30."""
    w = {"w": diagonal(3.0, 4.0, 1.0, 2.0)}
    for energy, kept in ((0.5, 1), (16 / 30 + 0.01, 2), (25 / 30 + 0.01, 3), (29 / 30 + 0.01, 4), (1.0, 4)):
        assert rank(factorize(w, energy)) == kept
    two = rebuild(factorize(w, 0.8))["w"]
    assert torch.allclose(two, diagonal(3.0, 4.0), atol=1e-6)


def test_what_does_not_get_smaller_stays_whole_to_the_bit() -> None:
    rng = stream(0)
    weights = {
        "matrix": torch.randn(8, 8, generator=rng),
        "bias": torch.randn(8, generator=rng),
        "counter": torch.tensor(3),
        "five": diagonal(1.0, 1.0, 1.0, 1.0, 1.0),  # 5 · (10 + 10) numbers are the 100 of the matrix
    }
    got = factorize(weights, 1.0)
    assert not got.left
    assert all(torch.equal(rebuild(got)[k], v) for k, v in weights.items())


def test_kernels_are_cut_as_matrices_and_come_back_as_kernels() -> None:
    kernel = torch.einsum("o,ihw->oihw", torch.randn(8, generator=stream(0)), torch.randn(4, 3, 3, generator=stream(1)))
    got = factorize({"k": kernel}, 0.99)
    assert got.left["k"].shape == (8, 1)
    assert got.right["k"].shape == (1, 4, 3, 3)
    assert torch.allclose(rebuild(got)["k"], kernel, atol=1e-5)


def test_nothing_at_all_is_a_product_too() -> None:
    assert rebuild(factorize({"w": torch.zeros(10, 10)}, 0.9))["w"].abs().sum() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 1.0), st.integers(0, 1000))
def test_what_is_lost_is_at_most_the_rest_of_the_energy(rows: int, columns: int, energy: float, seed: int) -> None:
    w = torch.randn(rows, columns, generator=stream(seed)) * torch.logspace(0, -4, columns)
    got = rebuild(factorize({"w": w}, energy))["w"]
    assert got.dtype == w.dtype
    assert float((got - w).norm()) <= math.sqrt(1 - energy) * float(w.norm()) * 1.001 + 1e-5


def test_products_of_any_rank_have_a_mean() -> None:
    matrices = [diagonal(4.0), diagonal(4.0, 2.0), diagonal(4.0, 4.0, 4.0, 4.0, 4.0, 4.0)]
    uploads = [factorize({"w": m, "n": torch.tensor(7)}, 1.0) for m in matrices]
    assert [rank(u) for u in uploads] == [1, 2, None]
    how, weights = RebuiltMean(), (1.0, 2.0, 5.0)
    lifted = [how.lift(u, w, INFO) for u, w in zip(uploads, weights, strict=True)]
    mean = how.finish(how.add(how.add(lifted[0], lifted[1]), lifted[2]))
    expected = sum((m * w for m, w in zip(matrices, weights, strict=True)), torch.zeros(10, 10)) / 8
    assert torch.allclose(mean["w"], expected, atol=1e-6)
    assert mean["n"].item() == 7
    assert (
        how.read_layout(uploads[0], INFO)
        == how.read_layout(uploads[2], INFO)
        == Mean().read_layout(rebuild(uploads[1]), INFO)
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [((4, 2), (3, 4)), ((4, 2), None), (None, (2, 4)), ((4,), (4, 4)), ((4, 2, 2), (2, 4)), ((4, 2), ())],
)
def test_factors_without_a_product_are_refused(left: tuple[int, ...] | None, right: tuple[int, ...] | None) -> None:
    sides = [{} if shape is None else {"w": torch.zeros(shape)} for shape in (left, right)]
    with pytest.raises(GenfedError, match=r"w: factors of shapes .* have no product"):
        RebuiltMean().read_layout(FactoredWeights({}, *sides), INFO)


def test_a_small_upload_of_a_huge_product_is_refused_before_the_product() -> None:
    """8 MB of factors, or none at all, of 4 TB."""
    like = {"w": torch.zeros(10, 10), "b": torch.zeros(2)}
    for rank_ in (1, 0):
        left, right = torch.ones(10**6, rank_), torch.ones(rank_, 10**6)
        bomb = FactoredWeights({"b": torch.zeros(2)}, {"w": left}, {"w": right})
        with pytest.raises(
            GenfedError, match=r"^'w' is \(torch.float32, \(1000000, 1000000\)\); .*\(10, 10\)\) is allow"
        ):
            check_factors(bomb, like)
        with pytest.raises(GenfedError, match=r"^'w' is"):
            apply_update(like, bomb)
        assert RebuiltMean().read_layout(bomb, INFO) == {
            "": {"b": "torch.float32 (2,)", "w": "torch.float32 (1000000, 1000000)"}
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": {}}, r"^'b' is missing; \(torch.float32, \(2,\)\) is allowed"),
        ({"whole": {"b": torch.zeros(2), "c": torch.zeros(2)}}, r"^'c' is .* no such tensor is allowed"),
        ({"whole": {"b": torch.zeros(2), "w": torch.zeros(10, 10)}}, "^w is whole and has factors"),
        ({"whole": {"b": torch.zeros(2).double()}}, r"^'b' is \(torch.float64"),
        (
            {"left": {"w": torch.full((10, 1), 1e9)}, "right": {"w": torch.full((1, 10), 1e7)}},
            r"numbers beyond ±1e\+15",
        ),
    ],
)
def test_factors_of_another_network_are_refused(change: dict[str, Any], message: str) -> None:
    like = {"w": torch.zeros(10, 10), "b": torch.zeros(2)}
    good = factorize({"w": diagonal(2.0), "b": torch.ones(2)}, 0.9)
    check_factors(good, like, 1e15)
    with pytest.raises(GenfedError, match=message):
        check_factors(replace(good, **change), like, 1e15)


def test_it_is_a_record() -> None:
    weights = factorize({"w": diagonal(2.0), "b": torch.ones(2)}, 0.9)
    there = unpack(FactoredWeights, from_bytes(to_bytes(pack(weights))))
    assert torch.equal(rebuild(there)["w"], rebuild(weights)["w"])
    assert pack(weights).nbytes < 4 * (10 + 10 + 2) + 200
