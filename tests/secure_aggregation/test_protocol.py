"""The sum is the plain one, one upload looks like noise, and whoever leaves is made up for, as far as that goes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from genfed.core.aggregate import Aggregate, ClientInfo, Collect, Fold, Mean, Sum, list_groups
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Phase, Reduced, Reply
from genfed.robustness.robust_mean import make_robust
from genfed.robustness.rules import Median
from genfed.secure_aggregation.fixed_point import SCALE, pack_vectors
from genfed.secure_aggregation.graph import neighbor_graph
from genfed.secure_aggregation.messages import MaskedUpload
from genfed.secure_aggregation.protocol import make_secure
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.training.low_rank import FactoredWeights, RebuiltMean, factorize
from tests.secure_aggregation.federation import Seen, play


@dataclass(frozen=True)
class Sent:
    w: dict[str, Tensor]


@dataclass(frozen=True)
class Upload:
    w: dict[str, Tensor]
    head: dict[str, Tensor]
    counts: Tensor
    seen: float


HOW: dict[str, Aggregate] = {"w": Mean(), "head": Mean(by="architecture"), "counts": Sum(), "seen": Sum()}


def upload_of(number: int) -> Reply[Upload]:
    rng = torch.Generator().manual_seed(number)
    w = {"a": torch.randn(3, 4, generator=rng), "n": torch.tensor(7), "h": torch.randn(2, generator=rng).half()}
    head = {"v": torch.randn(2 + number % 2, generator=rng)}
    return Reply(Upload(w, head, torch.tensor([number, 1]), number / 4), weight=10.0 + number, metrics={"loss": 1.0})


def work(client: Client, sent: Sent) -> Reply[Upload]:
    assert sent.w["a"].item() == 1.0
    return upload_of(client.info.id)


def keep(server: Server, state: Any, reduced: Reduced) -> Any:
    raise AssertionError("the run's own business")


def send(server: Server, state: Any, info: ClientInfo) -> Sent:
    return Sent({"a": torch.tensor(1.0)})


PHASE: Phase[Any] = Phase("train", keep, send, work, HOW)
PHASE_A: Phase[Any] = replace(PHASE, work=lambda client, sent: upload_of(0), wire=PHASE.wire_types)
"""Uploads that fit one another, whoever is of which architecture."""


def clients(count: int) -> list[ClientInfo]:
    return [ClientInfo(i, "ab"[i % 2], 10 + i) for i in range(count)]


def run(
    count: int,
    how: SecureAggregation,
    leaving: Mapping[int, Sequence[int]] | None = None,
    phase: Phase[Any] = PHASE,
    seen: Seen = lambda exchange, client, upload: upload,
) -> dict[str, Any]:
    """All exchanges; `leaving`: by exchange, who fails in it. Everything crosses as records do."""
    return dict(play(clients(count), how, phase, leaving, seen).reduced.values)


def plain(numbers: Sequence[int]) -> dict[str, Any]:
    infos = [info for info in clients(max(numbers) + 1) if info.id in numbers]
    fold = Fold(HOW, infos)
    for info in infos:
        reply = upload_of(info.id)
        fold.add(info, reply.upload, reply.weight)
    return fold.finish()


def assert_same(got: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, Tensor):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert torch.allclose(got.double(), expected.double(), atol=1e-3 if got.dtype == torch.float16 else 1e-6)
    else:
        assert got == pytest.approx(expected)


ALL = SecureAggregation(minimum_group=2)
RING = SecureAggregation(neighbors=4, minimum_group=2)


@pytest.mark.parametrize("how", [ALL, RING])
def test_the_sum_is_the_plain_one(how: SecureAggregation) -> None:
    assert_same(run(10, how), plain(range(10)))


def test_rounding_is_all_that_is_lost() -> None:
    got, expected = run(8, ALL)["w"]["a"], plain(range(8))["w"]["a"]
    step = 8 / 2 / SCALE / sum(10 + i for i in range(8))  # each of eight is rounded by half a step at most
    assert (got.double() - expected.double()).abs().max() <= step + 1e-7  # and float32


def test_it_is_the_same_to_the_bit_whatever_the_masks() -> None:
    one, other = run(6, ALL), run(6, ALL)
    assert torch.equal(one["w"]["a"], other["w"]["a"])


@pytest.mark.parametrize(
    ("leaving", "summed"),
    [
        ({0: [3]}, {3}),
        ({1: [0, 5]}, {0, 5}),
        ({2: [2]}, {2}),
        ({2: [1, 8]}, {1, 8}),
        ({3: [4]}, set()),  # it has given its upload: it is in the sum
        ({4: [4]}, set()),
        ({0: [0], 1: [1], 2: [2], 3: [3], 4: [4]}, {0, 1, 2}),
    ],
)
def test_who_leaves_at_any_step_is_made_up_for(leaving: dict[int, list[int]], summed: set[int]) -> None:
    got = run(14, SecureAggregation(minimum_group=2, threshold=0.51, corrupt_share=0), leaving)
    assert_same(got, plain([i for i in range(14) if i not in summed]))


def test_who_leaves_a_ring_is_made_up_for() -> None:
    for leaving, gone in (({2: [5]}, 5), ({1: [3], 3: [9]}, 3)):
        got = run(16, SecureAggregation(neighbors=6, minimum_group=2, threshold=0.6, corrupt_share=0.1), leaving)
        assert_same(got, plain([i for i in range(16) if i != gone]))


@pytest.mark.parametrize(
    ("leaving", "says"),
    [
        ({0: range(1, 10)}, "1 clients are left, and 2 are needed for a sum"),
        ({2: range(4, 10)}, "clients .*are left, and . are needed|gave their share of a secret, and . are needed"),
        ({3: range(4, 10)}, "clients .*are left, and . are needed|gave their share of a secret, and . are needed"),
        ({4: range(4, 10)}, "gave their share of a secret, and . are needed; client 4: .* it left"),
    ],
)
def test_too_few_are_refused(leaving: dict[int, Any], says: str) -> None:
    with pytest.raises(GenfedError, match=says):
        run(10, ALL, leaving)


def test_a_group_that_is_too_small_is_refused() -> None:
    with pytest.raises(GenfedError, match="2 clients of architecture b are left, and 3 are needed"):
        run(5, SecureAggregation())


def masked_numbers(count: int, rounds: int, expose: bool = False) -> Tensor:
    """What the server sees of client 0, by number [rounds · m]; `expose`: as it would be without masks."""
    rows: list[Tensor] = []

    def seen(exchange: str, client: int, upload: Any) -> Any:
        if exchange == "train.masked" and client == 0:
            assert isinstance(upload, MaskedUpload)
            rows.append(upload.masked[""].numbers)
        return upload

    for _ in range(rounds):
        run(count, ALL, seen=seen)
    whole = torch.cat(rows)
    if expose:
        reply = upload_of(0)
        plain_numbers = torch.cat([v.flatten().double() for v in reply.upload.w.values()]) * reply.weight * SCALE
        return plain_numbers.round().long().repeat(rounds)
    return whole


def uniform(numbers: Tensor) -> float:
    """The p-value of the numbers' being uniform modulo 2⁶⁴: of their highest and of their lowest four bits."""
    high = torch.bincount((numbers >> 60) & 15, minlength=16)
    low = torch.bincount(numbers & 15, minlength=16)
    return float(min(stats.chisquare(counts.numpy()).pvalue for counts in (high, low)))


def test_what_the_server_sees_of_one_client_is_uniform() -> None:
    assert uniform(masked_numbers(4, 30)) > 1e-5
    assert uniform(masked_numbers(4, 30, expose=True)) < 1e-9  # and the test would see it


def test_masks_are_new_in_every_round() -> None:
    first, second = masked_numbers(4, 1), masked_numbers(4, 1)
    assert not (first == second).any()


def test_what_is_revealed_opens_the_masks_of_pairs_with_clients_that_left_alone() -> None:
    """A survivor's own seed is requested, never its key: both would reveal its upload."""
    told = []

    def down(exchange: str, client: int, record: Any) -> Any:
        told.extend([(client, record)] if exchange == "train.reveal" else [])
        return record

    play([ClientInfo(i, "a", 99) for i in range(5)], ALL, PHASE_A, {2: [3]}, down=down)
    assert len(told) == 4
    for client, record in told:
        assert record.survivors == dict.fromkeys(("", "a"), tuple(i for i in (0, 1, 2, 4) if i != client))
        assert record.dropped == {"": (3,), "a": (3,)}


def test_numbers_that_cannot_be_summed_are_refused_by_the_client() -> None:
    def infinite(client: Client, sent: Sent) -> Reply[Upload]:
        reply = upload_of(client.info.id)
        return replace(reply, upload=replace(reply.upload, seen=1e30 if client.info.id == 2 else 0.0))

    with pytest.raises(GenfedError, match=r"holds a number that secure aggregation cannot sum(;|$)"):
        run(4, ALL, phase=replace(PHASE, work=infinite))


def forms(upload: Any, aggregates: Mapping[str, Aggregate] = HOW) -> dict[str, str]:
    info = ClientInfo(0, "mlp", 1)
    members = dict.fromkeys(list_groups(aggregates, info), 2)
    return {group: vector.form for group, vector in pack_vectors(upload, 1.0, aggregates, info, members).items()}


def test_no_form_shows_how_a_client_built_its_upload() -> None:
    """The form has no mask, so what a client decided by its examples must not show in it: the order of names, or
    whether a number was an int. Otherwise honest clients of different forms would not be summed, either."""
    upload = upload_of(1).upload
    other = replace(upload, w=dict(reversed(upload.w.items())), seen=0)
    assert list(upload.w) != list(other.w)
    assert forms(other) == forms(upload)
    assert json.loads(forms(upload)[""])[-1] == ["seen", [], "float", []]

    def either(client: Client, sent: Sent) -> Reply[Upload]:
        return Reply(other if client.info.id == 1 else upload)

    infos = [ClientInfo(i, "a", 1) for i in range(3)]
    mean = play(infos, ALL, replace(PHASE, work=either))
    assert not mean.failures
    assert torch.allclose(mean.reduced["w"]["a"], upload.w["a"], atol=1e-6)
    assert mean.reduced["seen"] == 0.5  # 1/4 of each of the two others


def test_factors_of_any_rank_have_one_form() -> None:
    """Which matrices FedKD factorizes depends on the examples."""

    @dataclass(frozen=True)
    class Update:
        update: FactoredWeights

    rng = torch.Generator().manual_seed(0)
    flat, full = torch.ones(9, 9), torch.randn(9, 9, generator=rng)
    uploads = [Update(factorize({"v": v, "w": w, "b": torch.ones(3)}, 0.9)) for v, w in [(flat, full), (full, flat)]]
    assert [list(upload.update.left) for upload in uploads] == [["v"], ["w"]]
    first, other = (forms(upload, {"update": RebuiltMean()}) for upload in uploads)
    assert first == other


@pytest.mark.parametrize("members", [0, -1, 2**21, 2**62])
def test_no_small_number_makes_a_client_refuse(members: int) -> None:
    """A server that names a huge group could read a client's largest number off its refusals."""
    reply = upload_of(0)
    info = ClientInfo(0, "mlp", 1)
    groups = list_groups(HOW, info)
    with pytest.raises(GenfedError, match=r"a sum of -?\d+ uploads: 1 to 1048576 are allowed"):
        pack_vectors(reply.upload, 1.0, HOW, info, dict.fromkeys(groups, members))
    assert pack_vectors(reply.upload, 1.0, HOW, info, dict.fromkeys(groups, 2**20)).keys() == groups.keys()


def test_phases_that_need_single_uploads_are_refused() -> None:
    with pytest.raises(GenfedError, match=r"its server needs every single counts \(kept one by one\)"):
        make_secure(replace(PHASE, aggregate=HOW | {"counts": Collect()}), ALL, 4)
    with pytest.raises(GenfedError, match=r"its server needs every single w \(all held, reduced by median\)"):
        make_secure(make_robust(PHASE, Median()), ALL, 4)
    with pytest.raises(GenfedError, match="checks every single upload"):
        make_secure(replace(PHASE, check=lambda *_: None), ALL, 4)
    with pytest.raises(GenfedError, match=r"secure_aggregation.neighbors = 3: an even number"):
        SecureAggregation(neighbors=3)


def test_what_is_only_screened_is_summed_under_masks() -> None:
    def screen(server: Server, info: ClientInfo, upload: Any) -> None:
        raise AssertionError("the server sees no upload")

    assert_same(run(5, ALL, phase=replace(PHASE, screen=screen)), plain(range(5)))


@pytest.mark.parametrize(("neighbors", "threshold"), [(2, 2 / 3), (4, 0.6), (6, 0.55), (48, 0.51)])
def test_a_ring_that_could_be_cut_is_refused(neighbors: int, threshold: float) -> None:
    half = neighbors // 2 + 1
    with pytest.raises(GenfedError, match=f"more than {half} of {neighbors + 1} must be needed"):
        SecureAggregation(neighbors=neighbors, threshold=threshold, corrupt_share=0)


@pytest.mark.parametrize(("threshold", "corrupt"), [(0.6, 0.2), (0.51, 0.1), (2 / 3, 0.34)])
def test_a_threshold_at_which_two_lists_could_be_agreed_on_is_refused(threshold: float, corrupt: float) -> None:
    """Two sets of `threshold` of all clients have more than `corrupt` of them in common."""
    with pytest.raises(GenfedError, match=r"more than .* is needed while"):
        SecureAggregation(threshold=threshold, corrupt_share=corrupt)


def test_an_arc_of_the_ring_is_not_added_up_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two neighbors leave on either side of 2, 3 and 4: masks no longer tie these to the others."""
    monkeypatch.setattr("random.SystemRandom.sample", lambda self, population, k: list(population))
    with pytest.raises(GenfedError, match="3 clients are left, and 4 are needed for a sum"):
        run(10, RING, {2: [0, 1, 5, 6]})


@pytest.mark.parametrize("neighbors", [2, 4, 6])
def test_a_ring_is_regular_symmetric_and_drawn_anew(neighbors: int) -> None:
    ids = list(range(0, 60, 3))
    ring = neighbor_graph(ids, neighbors)
    assert list(ring) == ids
    assert all(len(set(near)) == neighbors and one not in near for one, near in ring.items())
    assert all(one in ring[other] for one, near in ring.items() for other in near)
    assert ring != neighbor_graph(ids, neighbors)
    assert neighbor_graph([1, 2, 5], neighbors) == {1: (2, 5), 2: (1, 5), 5: (1, 2)}


def test_a_form_is_public_and_says_no_number() -> None:
    forms: list[str] = []

    def seen(exchange: str, client: int, upload: Any) -> Any:
        if exchange == "train.masked":
            forms.append(upload.masked[""].form)
        return upload

    run(4, ALL, seen=seen)
    assert len(set(forms)) == 1
    assert json.loads(forms[0])[0] == ["w", ["a"], "float32", [3, 4]]
