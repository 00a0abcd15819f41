"""The sum of one example is that example; the mean of a few is near them; what is left out of a sum is not in it."""

import dataclasses
from typing import Any

import pytest
import torch

from genfed.audits.audit import Case, ClientExamples, NotPossible
from genfed.audits.inversion_sums import NEARER, RATIO, SAME, InversionSums
from genfed.audits.uploaded_sums import vectors_as_uploaded
from genfed.core.aggregate import ClientInfo
from genfed.core.task import Data, Task
from genfed.encoders.identity import Identity
from genfed.encoders.random_conv import RandomConv
from genfed.generators.gaussian import Gaussian
from genfed.generators.gaussian_mixture import GaussianMixture
from genfed.generators.ppca import PPCA
from genfed.methods.fedavg import FedAvg
from genfed.methods.fedcgs import FedCGS
from genfed.methods.fedpft import FedPFT
from genfed.methods.gefl import GeFL
from genfed.methods.gefl_f import GeFLF, GeFLFState
from genfed.methods.gh_ofl import GHOFL
from genfed.training.pixels import normalize_pixels
from tests.audits.cases import CLASSES, ROUNDS, case, drawn, server


def toy(method: Any, *sizes: int) -> Case:
    """Clients of which each has this many examples of each class."""
    train = drawn(300, "train")
    of_class = [torch.nonzero(train.y == label).flatten() for label in range(CLASSES)]
    holdings, used = [], 0
    for client, size in enumerate(sizes):
        rows = torch.cat([rows[used : used + size] for rows in of_class])
        holdings.append(ClientExamples(ClientInfo(client, "linear", len(rows)), rows, None, ROUNDS))
        used += size

    def pixels(data: Data) -> Data:
        return Data(normalize_pixels(data.x).flatten(1), data.y)

    features = pixels if method.of_features else None
    there = dataclasses.replace(case(train=300), holdings=tuple(holdings), method=method, features=features)
    return there.as_seen(InversionSums.sees)


@pytest.mark.parametrize(
    "method",
    [
        FedCGS(encoder=Identity()),
        GHOFL(encoder=Identity(), generator=Gaussian(covariance="diagonal")),
        GHOFL(encoder=Identity(), generator=GaussianMixture()),
        GeFL(generator=PPCA()),
        GeFL(generator=PPCA(size=4)),
    ],
)
def test_one_example_is_read_off_and_its_picture_is_shown(method: Any) -> None:
    found = InversionSums().examine(toy(method, 1, 1, 20))
    (reading,) = found.readings
    assert reading.verdict == "leak"
    for numbers in (reading.run, reading.control):
        assert numbers[SAME].value == 1
        assert numbers[RATIO].value == 0
    assert reading.null[SAME].value == 0
    assert reading.null[NEARER].low <= 0 <= reading.null[NEARER].high
    assert found.sizes == {"clients": 3, "small classes": 6}
    (picture,) = found.pictures
    mean, own, other = picture.images
    assert torch.equal(mean, own)
    assert not torch.equal(mean, other)
    size = getattr(method.generator, "size", None)
    assert mean.shape == (6, 1, size or 8, size or 8)
    assert "client 0, class 0, 1: 0.00" in found.notes[1]


def test_a_mean_is_nearer_to_its_own_the_fewer_they_are() -> None:
    found = InversionSums().examine(toy(FedCGS(encoder=Identity()), 1, 2, 5, 60))
    assert found.readings[0].verdict == "leak"
    assert found.sizes["small classes"] == 9
    ratios = [float(part.split()[1]) for part in found.notes[0].split("classes): ")[1].split(", ")]
    assert 0 == ratios[0] < ratios[1] < ratios[2] < 1


def test_what_is_left_out_of_a_sum_is_not_found() -> None:
    least = FedCGS(encoder=Identity(), generator=Gaussian(minimum_class_count=3))
    found = InversionSums().examine(toy(least, 1, 2, 4))
    assert found.sizes["small classes"] == 3
    assert found.readings[0].run[SAME].value == 0
    assert found.readings[0].control[SAME].value == 1
    with pytest.raises(NotPossible, match="no client of toy uploads the sum of a class of 1 to 5 examples"):
        InversionSums().examine(toy(least, 1, 2))


def test_a_client_that_was_not_asked_is_not_attacked() -> None:
    there = toy(FedCGS(encoder=Identity()), 1, 1, 20)
    first, *rest = there.holdings
    found = InversionSums().examine(dataclasses.replace(there, holdings=(dataclasses.replace(first, rounds={}), *rest)))
    assert found.sizes == {"clients": 2, "small classes": 3}
    assert "client 0" not in found.notes[1]


def test_features_that_are_no_pixels_have_no_picture() -> None:
    method = FedCGS(encoder=RandomConv(filters=2))
    found = InversionSums().examine(toy(method, 1, 2))
    assert found.pictures == ()
    assert found.readings[0].verdict == "leak"


@pytest.mark.parametrize("method", [FedAvg(), GeFL(), FedPFT(encoder=Identity())])
def test_methods_without_sums_are_not_attacked(method: Any) -> None:
    with pytest.raises(NotPossible, match="no client of toy uploads sums"):
        InversionSums().examine(toy(method, 1, 2))


@pytest.mark.parametrize("whitening", ["diagonal", "full"])
def test_sums_by_which_features_are_whitened_are_attacked(whitening: Any) -> None:
    """A trained generator uploads no sums, and the phase before it does."""
    method = GeFLF(encoder=Identity(), whitening=whitening)
    extractor, _ = method.space.begin(server())
    state = GeFLFState(extractor | {"mean": torch.ones(64), "factor": torch.ones(64)}, {}, {})
    there = dataclasses.replace(toy(method, 1, 1, 20), state=state)
    found = InversionSums().examine(there)
    assert found.sizes == {"clients": 3, "small classes": 6}
    assert found.readings[0].run[SAME].value == 1
    with pytest.raises(NotPossible, match="no client of toy uploads sums"):
        InversionSums().examine(toy(dataclasses.replace(method, whitening="none"), 1, 2))


def test_vectors_are_what_is_added_up() -> None:
    data = Data(torch.randn(7, 4), torch.tensor([0, 0, 1, 2, 2, 2, 1]))
    task = Task("features", (4,), ("a", "b", "c"))
    found = vectors_as_uploaded(Gaussian(), data, task)
    assert torch.equal(found, data.x.double().mul(64).round() / 64)
