"""Clipped means with noise, against numbers worked out by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.errors import GenfedError
from genfed.privacy.dp_fedavg import NoisyClippedMean
from genfed.privacy.randomness import os_randomness
from genfed.privacy.settings import AdaptiveClipping
from genfed.training.low_rank import RebuiltMean, factorize


@dataclass(frozen=True)
class Two:
    """A body that all share and a head per architecture."""

    body: Any
    head: Any


MEANS = {"body": Mean(), "head": Mean(by="architecture")}
SENT = Two(torch.tensor([1.0, 1.0]), torch.tensor([2.0]))


def clients(count: int, architectures: str = "a") -> list[ClientInfo]:
    return [ClientInfo(3 * i, architectures[i % len(architectures)], 1) for i in range(count)]


def fold_of(
    uploads: Sequence[Any],
    *,
    clip: float,
    noise: float = 0.0,
    sent: Any = SENT,
    means: Any = None,
    architectures: str = "a",
    weights: Sequence[float] = (),
) -> NoisyClippedMean:
    asked = clients(len(uploads), architectures)
    fold = NoisyClippedMean(means or MEANS, asked, lambda info: sent, clip, noise, np.random.default_rng(0))
    for i, (info, upload) in enumerate(zip(asked, uploads, strict=True)):
        if upload is None:
            fold.skip(info)
        else:
            fold.add(info, upload, weights[i] if weights else 1.0, sent)
    return fold


def two(x: float, y: float, z: float) -> Two:
    return Two(torch.tensor([x, y], dtype=torch.float32), torch.tensor([z], dtype=torch.float32))


def test_a_whole_upload_is_clipped_and_the_mean_is_unweighted() -> None:
    # Updates (2, 1, 2) of length 3, clipped to 1.5: (1, 0.5, 1); and (0, 0, 1), which is short enough.
    found = fold_of([two(3, 2, 4), two(1, 1, 3)], clip=1.5, weights=[1, 1000]).finish()
    assert found["body"].tolist() == [1 + 0.5, 1 + 0.25]
    assert found["head"]["a"].tolist() == [2 + 1.0]
    assert found["body"].dtype == torch.float32


def test_a_huge_clip_without_noise_gives_the_unweighted_mean() -> None:
    rng = torch.Generator().manual_seed(3)
    uploads = [Two(torch.randn(5, generator=rng), torch.randn(2, 2, generator=rng)) for _ in range(7)]
    sent = Two(torch.ones(5), torch.ones(2, 2))
    found = fold_of(uploads, clip=1e9, sent=sent, weights=[5, 1, 1, 9, 1, 1, 1]).finish()
    assert torch.allclose(found["body"], torch.stack([u.body for u in uploads]).mean(0), atol=1e-6)
    assert torch.allclose(found["head"]["a"], torch.stack([u.head for u in uploads]).mean(0), atol=1e-6)


def test_each_group_is_divided_by_those_asked_whoever_answers() -> None:
    # a: two asked, one answers with (4, 0, 0) beside its state; b: one asked, who does not.
    found = fold_of([two(5, 1, 2), None, None], clip=1e9, architectures="ab").finish()
    assert found["body"].tolist() == pytest.approx([1 + 4 / 3, 1])
    assert {name: head.tolist() for name, head in found["head"].items()} == {"a": [2.0], "b": [2.0]}


def test_no_client_moves_the_mean_by_more_than_the_clip() -> None:
    uploads = [two(3, 2, 4), two(1, 1, 3), two(-500, 9e9, 3e30)]
    with_it = fold_of(uploads, clip=0.5).finish()
    without = fold_of([*uploads[:2], None], clip=0.5).finish()
    moved = [with_it["body"] - without["body"], with_it["head"]["a"] - without["head"]["a"]]
    assert math.hypot(*torch.cat(moved).tolist()) == pytest.approx(0.5 / 3, rel=1e-5)


def test_noise_is_as_large_as_it_is_said_to_be() -> None:
    # On a mean over 4: z · clip / 4 = 2 · 0.5 / 4; and in a group that nobody answered for as well.
    sent = Two(torch.zeros(20_000), torch.zeros(20_000))
    found = fold_of([sent, None, sent, None], clip=0.5, noise=2.0, sent=sent, architectures="ab").finish()
    for values, spread in ((found["body"], 0.25), (found["head"]["a"], 0.5), (found["head"]["b"], 0.5)):
        assert fmean(values.tolist()) == pytest.approx(0, abs=0.02)
        assert pstdev(values.tolist()) == pytest.approx(spread, rel=0.03)
    assert not torch.equal(found["head"]["a"], found["head"]["b"])


def test_noise_of_the_operating_system_never_comes_twice() -> None:
    one, other = (os_randomness().standard_normal(4) for _ in range(2))
    assert not np.array_equal(one, other)


def test_counters_are_not_released_and_variances_stay_above_0() -> None:
    sent = Two({"running_var": torch.full((1000,), 0.1), "batches": torch.tensor(3)}, torch.zeros(1))
    upload = Two({"running_var": torch.full((1000,), 0.2), "batches": torch.tensor(90)}, torch.zeros(1))
    found = fold_of([upload], clip=1.0, noise=1.0, sent=sent).finish()["body"]
    assert found["batches"].item() == 3
    assert found["batches"].dtype == torch.int64
    assert found["running_var"].min() == 0
    assert found["running_var"].max() > 1


def test_an_upload_that_nothing_was_sent_for_is_an_update() -> None:
    long = {"w": torch.diag(torch.tensor([3.0, 4.0])), "n": torch.tensor(7)}
    values = [long, {"w": torch.eye(2), "n": torch.tensor(1)}]
    uploads = [Two(factorize(value, 1.0), torch.zeros(1)) for value in values]
    sent = Two(None, torch.zeros(1))
    found = fold_of(uploads, clip=2.5, sent=sent, means=MEANS | {"body": RebuiltMean()}).finish()["body"]
    # diag(3, 4) of length 5 is halved; the other, of length √2, is not.
    assert torch.allclose(found["w"], torch.diag(torch.tensor([(1.5 + 1) / 2, (2 + 1) / 2])), atol=1e-6)
    assert found["n"].item() == 0
    with pytest.raises(GenfedError, match="no client uploaded body"):
        fold_of([None], clip=1.0, sent=sent).finish()


def test_numbers_are_averaged_too() -> None:
    found = fold_of([Two(5.0, 0.0), Two(1.0, 0.0)], clip=2.0, sent=Two(1.0, 0.0)).finish()
    assert found["body"] == 2.0  # 4 is cut to 2


def test_an_update_from_another_state_or_without_end_is_left_out() -> None:
    asked = clients(2)
    fold = NoisyClippedMean(MEANS, asked, lambda info: SENT, 1.0, 0.0, np.random.default_rng(0))
    with pytest.raises(GenfedError, match="were sent different states"):
        fold.add(asked[0], SENT, 1.0, two(1, 1, 1))
    with pytest.raises(GenfedError, match="were sent different states"):
        fold.add(asked[0], SENT, 1.0)
    huge = Two(torch.tensor([1e308, 1e308], dtype=torch.float64), torch.zeros(1))
    fold = NoisyClippedMean(
        {"body": Mean(), "head": Mean()}, asked, lambda info: None, 1.0, 0.0, np.random.default_rng(0)
    )
    with pytest.raises(GenfedError, match="its update is not finite"):
        fold.add(asked[0], huge, 1.0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 2, 3)])
def test_an_upload_of_another_shape_names_nothing_that_is_released(order: Sequence[int]) -> None:
    """Nothing was sent, so most uploads say how the mean looks, whichever client replies first."""
    asked = clients(4)
    uploads = [Two({"x": torch.ones(7)}, torch.ones(1)), *(Two(torch.ones(2) / 2, torch.zeros(1)) for _ in range(3))]
    fold = NoisyClippedMean(MEANS, asked, lambda info: None, 9.0, 0.0, np.random.default_rng(0))
    left_out = []
    for i in order:
        try:
            fold.add(asked[i], uploads[i], 1.0)
        except GenfedError:  # most of the others are known already
            fold.skip(asked[i])
            left_out.append(asked[i].id)
    assert [*left_out, *fold.settle()] == [asked[0].id]
    assert fold.finish()["body"].tolist() == [0.375, 0.375]  # three of the four that were expected


def test_adaptive_clipping_by_hand() -> None:
    how = AdaptiveClipping(quantile=0.5, rate=0.2)
    # Two of three updates are no longer than 1: (2 − 1.5) / 3 + 0.5 = 2/3, and C · exp(−0.2 · (2/3 − 0.5)).
    fold = fold_of([two(1, 1, 2), two(1, 2, 2), two(9, 9, 9)], clip=1.0)
    assert fold.share_within(0.0) == pytest.approx(2 / 3)
    assert how.next_clip(1.0, fold.share_within(0.0)) == pytest.approx(math.exp(-0.2 / 6))
    # Who does not answer counts for half: (1/2 − 1/2 + 1 ...) of [within, no answer] = (1 − 0.5) / 2 + 0.5.
    assert fold_of([two(1, 1, 2), None], clip=1.0).share_within(0.0) == pytest.approx(0.75)
    # The noise on a count of 100 has the standard deviation asked for: over 100 it is 0.05.
    many = fold_of([two(1, 1, 2)] * 100, clip=1.0)
    shares = [many.share_within(5.0) for _ in range(4000)]
    assert fmean(shares) == pytest.approx(1.0, abs=0.003)
    assert pstdev(shares) == pytest.approx(0.05, rel=0.04)


def test_adaptive_clipping_finds_the_quantile() -> None:
    how, clip = AdaptiveClipping(quantile=0.5, rate=0.2), 0.1
    lengths = [1.0, 2.0, 3.0, 4.0, 5.0]
    for _ in range(200):
        clip = how.next_clip(clip, fold_of([two(1, 1 + n, 2) for n in lengths], clip=clip).share_within(0.0))
    assert 2.7 < clip < 3.3


def test_updates_and_count_share_the_noise() -> None:
    how = AdaptiveClipping(count_noise=5.0)
    rest = how.on_updates(1.0, 100)
    # Two Gaussian mechanisms of sensitivities 1 and ½ on standard deviations z_Δ and σ_b are one with z.
    assert 1 / rest**2 + (0.5 / 5.0) ** 2 == pytest.approx(1.0)
    assert (AdaptiveClipping().on_count(1.0, 100), AdaptiveClipping().on_count(1.0, 4)) == (5.0, 1.0)
    assert (how.on_updates(0.0, 100), how.on_count(0.0, 100)) == (0.0, 0.0)
    with pytest.raises(GenfedError, match=r"adaptive\.count_noise = 0\.5: more than half the noise multiplier of 1 is"):
        AdaptiveClipping(count_noise=0.5).on_updates(1.0, 100)


def test_the_order_of_answers_does_not_show() -> None:
    rng = torch.Generator().manual_seed(1)
    uploads = [Two(torch.randn(9, generator=rng), torch.randn(3, generator=rng)) for _ in range(5)]
    asked, sent, found = clients(5, "ab"), Two(torch.zeros(9), torch.zeros(3)), list[Tensor]()
    for order in (range(5), (3, 0, 4, 2, 1)):
        fold = NoisyClippedMean(MEANS, asked, lambda info: sent, 1.0, 1.0, np.random.default_rng(0))
        for i in order:
            fold.add(asked[i], uploads[i], 1.0, sent)
        values = fold.finish()
        found.append(torch.cat([values["body"], values["head"]["a"], values["head"]["b"]]))
    assert torch.equal(*found)


def test_of_clients_drawn_in_secret_sums_are_divided_by_how_many_were_to_be_expected() -> None:
    """Four of architecture a and two of b, each drawn with a chance of a half; two of a were, and none of b."""
    everybody = clients(6, "aab")
    asked = [everybody[0], everybody[3]]
    uploads = [Two(SENT.body + 3.0, SENT.head + 1.0), Two(SENT.body - 1.0, SENT.head + 2.0)]

    def released(noise: float) -> dict[str, Any]:
        fold = NoisyClippedMean(MEANS, asked, lambda i: SENT, 1e9, noise, np.random.default_rng(0), (everybody, 0.5))
        for info, upload in zip(asked, uploads, strict=True):
            fold.add(info, upload, 1.0, SENT)
        assert fold.expected == 3.0
        assert fold.share_within(0.0) == pytest.approx(1 / 3 + 0.5)  # both of three: 2 − 2/2 over 3, and a half
        return fold.finish()

    plain = released(0.0)
    torch.testing.assert_close(plain["body"], SENT.body + 2 / 3)
    torch.testing.assert_close(plain["head"]["a"], SENT.head + 3 / 2)
    assert torch.equal(plain["head"]["b"], SENT.head)
    assert not torch.equal(released(1.0)["head"]["b"], SENT.head)  # its noise hides that nobody was asked


def test_what_was_not_sent_cannot_be_released_where_nobody_was_drawn() -> None:
    with pytest.raises(GenfedError, match="head was not sent, so secret_sampling has nothing to release"):
        NoisyClippedMean(
            MEANS, [], lambda i: Two(SENT.body, None), 1.0, 1.0, np.random.default_rng(0), (clients(4, "ab"), 0.5)
        )
