import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Sum
from genfed.core.client import Client, Slot
from genfed.core.errors import GenfedError, StorageError
from genfed.core.federated_data import FederatedData
from genfed.core.phase import Empty, Phase, Reply
from genfed.core.record import Packed, pack, unpack
from genfed.core.rng import stream
from genfed.core.task import Data, Task
from genfed.engines.client_runner import ClientRunner, ClientRuntime, use_threads
from genfed.engines.client_storage import BEFORE, INDEX, DiskStorage, to_stored
from genfed.engines.in_process import InProcess
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure, Job


@dataclass(frozen=True)
class Note:
    text: str


@dataclass(frozen=True)
class Got:
    total: Tensor
    draw: Tensor


@dataclass(frozen=True)
class Sent:
    x: Tensor


NOTE, OTHER = Slot("note", Note), Slot("other-note", Note)


def keep(store: DiskStorage, slot: Slot[Any], record: Any) -> None:
    store.put(slot, record)
    store.commit()


def kept(folder: Path, number: int, slots: tuple[Slot[Any], ...] | None = (NOTE, OTHER)) -> DiskStorage:
    return DiskStorage(folder, number, slots)


# What clients keep.


def test_a_step_reads_what_was_kept_before_it_however_often_it_is_repeated(tmp_path: Path) -> None:
    for text in ("first", "again"):
        assert kept(tmp_path, 0).get(NOTE) is None
        keep(kept(tmp_path, 0), NOTE, Note(text))
        assert kept(tmp_path, 0).get(NOTE) is None
    for _ in range(3):
        assert kept(tmp_path, 4).get(NOTE) == Note("again")
        keep(kept(tmp_path, 4), NOTE, Note("fourth"))
    assert kept(tmp_path, 5).get(NOTE) == Note("fourth")
    assert kept(tmp_path, 4).get(NOTE) == Note("again")
    assert kept(tmp_path, 100).get(NOTE) == Note("fourth")


def test_the_last_two_survive(tmp_path: Path) -> None:
    for number in (0, 1, 2, 9, 10, 11):  # 10 comes after 9, not after 1
        keep(kept(tmp_path, number), NOTE, Note(str(number)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [INDEX, "note.10.safetensors", "note.11.safetensors"]
    assert kept(tmp_path, 11).get(NOTE) == Note("10")
    assert kept(tmp_path, 12).get(NOTE) == Note("11")


def test_slots_do_not_disturb_one_another(tmp_path: Path) -> None:
    keep(kept(tmp_path, 0), NOTE, Note("mine"))
    assert kept(tmp_path, 1).get(OTHER) is None
    for number in range(5):
        keep(kept(tmp_path, number), OTHER, Note("other"))
    assert kept(tmp_path, 9).get(NOTE) == Note("mine")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=1, max_size=8))
def test_any_history_with_kills_ends_like_the_one_without(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[bool, int]]
) -> None:
    """Each step writes or does not, and is done one to three times, as after kills."""
    folder, last = tmp_path_factory.mktemp("kept"), ""
    for number, (writes, times) in enumerate(plan):
        for _ in range(times):
            record = kept(folder, number).get(NOTE)
            assert (record.text if record else "") == last
            if writes:
                keep(kept(folder, number), NOTE, Note(f"{last}+{number}"))
        last = f"{last}+{number}" if writes else last
    assert len(list(folder.iterdir())) <= 3  # two versions and the index


def test_a_record_is_on_the_disk_before_the_index_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power cut would have it: what was not forced to the disk before a later step may be missing after it."""
    forced: list[tuple[str, bool]] = []  # name, whether the index was there already
    fsync = os.fsync

    def watched(handle: int) -> None:
        forced.append((Path(f"/proc/self/fd/{handle}").readlink().name, (folder / INDEX).exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    folder = tmp_path / "clients" / "7"
    store = kept(folder, 0)
    store.put(NOTE, Note("mine"))
    store.commit(to_stored(RoundId("train", 0, 0), PackedReply(pack(Note("reply")), 1.0)))
    names = [name for name, _ in forced]
    assert names[:2] == [tmp_path.name, "clients"], "the new folders"
    assert ("note.0.safetensors", False) in forced
    assert ("reply.0", False) in forced
    assert forced[-3][0] == "7", "the names of both, before the index is written"
    assert forced[-1] == ("7", True)


def test_storage_that_is_not_durable_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fsync", refuse)
    for number in (0, 1, 1, 2):
        store = DiskStorage(tmp_path, number, (NOTE,), durable=False)
        store.put(NOTE, Note(str(number)))
        store.commit()
    assert sorted(p.name for p in tmp_path.iterdir()) == [BEFORE, INDEX, "note.1.safetensors", "note.2.safetensors"]
    (tmp_path / INDEX).write_bytes(b"")
    assert DiskStorage(tmp_path, 2, (NOTE,), since=1, durable=False).get(NOTE) == Note("1")
    for durable, since in ((False, 2), (True, 1), (True, None)):
        with pytest.raises(StorageError, match=r"index.safetensors is damaged .*; put .* back as it was"):
            DiskStorage(tmp_path, 2, (NOTE,), since=since, durable=durable)


def test_a_damaged_index_does_not_replace_the_one_before(tmp_path: Path) -> None:
    """A power cut, and another one in the same round."""
    for number in (0, 1, 2):
        keep(DiskStorage(tmp_path, number, (NOTE,), durable=False), NOTE, Note(str(number)))
    for _ in range(2):
        (tmp_path / INDEX).write_bytes(b"")
        keep(DiskStorage(tmp_path, 2, (NOTE,), since=1, durable=False), NOTE, Note("2"))
    (tmp_path / INDEX).write_bytes(b"")
    assert DiskStorage(tmp_path, 2, (NOTE,), since=1, durable=False).get(NOTE) == Note("1")


def test_undeclared_slots_are_refused(tmp_path: Path) -> None:
    for refused in (kept(tmp_path, 0, ()), kept(tmp_path, 0, (OTHER,))):
        with pytest.raises(GenfedError, match="slot 'note' is not declared by the phase that uses it"):
            refused.get(NOTE)
        with pytest.raises(GenfedError, match="slot 'note' is not declared"):
            refused.put(NOTE, Note(""))
    assert list(tmp_path.iterdir()) == []


def test_evaluation_reads_all_and_writes_nothing(tmp_path: Path) -> None:
    keep(kept(tmp_path, 0), NOTE, Note("mine"))
    assert kept(tmp_path, 1, None).get(NOTE) == Note("mine")
    assert kept(tmp_path, 1, None).get(OTHER) is None
    with pytest.raises(GenfedError, match="not declared"):
        keep(kept(tmp_path, 1, None), NOTE, Note("other"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    keep(kept(tmp_path, 0), NOTE, Note("mine"))
    (tmp_path / "note.0.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match=r"note\.0\.safetensors is damaged .*; put .* back as it was, or delete"):
        kept(tmp_path, 1).get(NOTE)


def test_what_a_killed_process_left_half_written_is_not_read(tmp_path: Path) -> None:
    keep(kept(tmp_path, 0), NOTE, Note("mine"))
    (tmp_path / ".note.1.safetensors.123.part").write_bytes(b"half")
    assert kept(tmp_path, 2).get(NOTE) == Note("mine")
    keep(kept(tmp_path, 2), NOTE, Note("two"))


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "*", "[a]", "a b", "a\n"])
def test_a_slot_name_is_fit_for_a_file(name: str) -> None:
    with pytest.raises(GenfedError, match="cannot name a slot"):
        Slot(name, Note)


# The work of one client.


def shards() -> FederatedData:
    clients = (ClientInfo(4, "a", 2), ClientInfo(7, "b", 3))
    data = Data(torch.arange(5, dtype=torch.float32).reshape(5, 1), torch.arange(5) % 2)
    return FederatedData(Task("table", (1,), ("x", "y")), clients, ((0, 2), (2, 5)), data, data)


def new_network(architecture: str, task: Task, rng: torch.Generator) -> nn.Module:
    network = nn.Linear(1, {"a": 2, "b": 3}[architecture])
    nn.init.normal_(network.weight, generator=rng)
    return network


def site(folder: Path, work: Any, *slots: Slot[Any], scores: bool = False, seed: int = 3) -> ClientRunner:
    phase: Phase[Any] = Phase(
        "train", lambda server, state, reduced: state, lambda *_: Empty(), work,
        {"total": Sum(), "draw": Sum()}, slots=slots, scores=scores,
    )  # fmt: skip
    return ClientRunner({"train": phase}, shards(), folder, seed, ClientRuntime(new_network))


def look(client: Client, sent: Sent) -> Reply[Got]:
    sent.x.add_(1)  # work in place
    total = client.data.x.sum() + sent.x.sum()
    return Reply(
        Got(total, torch.rand(2, generator=client.rng)), weight=len(client.data), metrics={"n": client.info.id}
    )


def test_a_client_gets_its_own_rows_draws_and_architecture(tmp_path: Path) -> None:
    def work(client: Client, sent: Sent) -> Reply[Got]:
        assert client.new_network(client.common("x")).weight.shape == (3, 1)
        assert client.task.classes == ("x", "y")
        assert client.info == ClientInfo(7, "b", 3)
        return look(client, sent)

    answer = site(tmp_path, work).work(RoundId("train", 5, 9), 7, pack(Sent(torch.zeros(2))))
    got = unpack(Got, answer.upload)
    assert got.total.item() == 2 + 3 + 4 + 2
    assert torch.equal(got.draw, torch.rand(2, generator=stream(3, "train", 5, 7)))
    assert (answer.weight, answer.metrics) == (3.0, {"n": 7.0})
    assert answer.seconds > 0


def test_doing_a_step_again_gives_the_same_answer(tmp_path: Path) -> None:
    def work(client: Client, sent: Sent) -> Reply[Got]:
        before = client.storage.get(NOTE)
        client.storage.put(NOTE, Note((before.text if before else "") + f"{client.info.id};"))
        return Reply(Got(torch.tensor(len(before.text) if before else 0), torch.rand(1, generator=client.rng)))

    place = site(tmp_path, work, NOTE)
    steps = [RoundId("train", i, i) for i in range(3)]
    answers = [[place.work(step, 4, pack(Sent(torch.zeros(1)))).upload for _ in range(2)] for step in steps]
    for i, (one, other) in enumerate(answers):
        assert unpack(Got, one).total.item() == 2 * i
        assert all(torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4"]


def test_only_evaluation_may_read_what_it_does_not_declare(tmp_path: Path) -> None:
    def work(client: Client, sent: Sent) -> Reply[Got]:
        assert client.storage.get(NOTE) == Note("mine")
        return Reply(Got(torch.zeros(1), torch.zeros(1)))

    keep(DiskStorage(tmp_path / "4", 0, (NOTE,)), NOTE, Note("mine"))
    sent = pack(Sent(torch.zeros(1)))
    site(tmp_path, work, scores=True).work(RoundId("train", 0, 1), 4, sent)
    with pytest.raises(GenfedError, match="slot 'note' is not declared"):
        site(tmp_path, work).work(RoundId("train", 0, 1), 4, sent)


class Doubles:
    """Works with its examples twice as large, and uploads nothing but ones."""

    def targets_phase(self, phase: Phase[Any]) -> bool:
        return phase.name == "train"

    def data(self, client: Client) -> Data:
        return Data(2 * client.data.x, client.data.y)

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        totals = {path: tensor for path, tensor in upload.tensors.items() if path.endswith("total")}
        return Packed(totals | {path: torch.ones(2) for path in upload.tensors.keys() - totals.keys()}, upload.skeleton)


def test_a_client_behaves_otherwise_only_where_it_is_to(tmp_path: Path) -> None:
    honest = site(tmp_path, look)
    phases = {"train": honest._phases["train"], "tune": replace(honest._phases["train"], name="tune")}
    runner = ClientRunner(phases, shards(), tmp_path, 3, ClientRuntime(new_network), {7: Doubles()})

    def got(phase: str, client: int) -> Got:
        return unpack(Got, runner.work(RoundId(phase, 0, 0), client, pack(Sent(torch.zeros(2)))).upload)

    assert got("train", 7).total.item() == 2 * (2 + 3 + 4) + 2
    assert got("train", 7).draw.tolist() == [1.0, 1.0]
    assert (got("train", 4).total.item(), got("tune", 7).total.item()) == (0 + 1 + 2, 2 + 3 + 4 + 2)
    assert got("tune", 7).draw.tolist() == torch.rand(2, generator=stream(3, "tune", 0, 7)).tolist()


def test_weights_and_metrics_become_plain_numbers(tmp_path: Path) -> None:
    def work(client: Client, sent: Sent) -> Reply[Got]:
        metrics: Any = {"loss": torch.tensor(0.5), "n": 3}
        return Reply(Got(torch.zeros(1), torch.zeros(1)), weight=torch.tensor(2.0), metrics=metrics)  # type: ignore[arg-type]

    answer = site(tmp_path, work).work(RoundId("train", 0, 0), 4, pack(Sent(torch.zeros(1))))
    assert (type(answer.weight), answer.weight) == (float, 2.0)
    assert {k: (type(v), v) for k, v in answer.metrics.items()} == {"loss": (float, 0.5), "n": (float, 3.0)}


def exchange(place: ClientRunner, sent: Packed) -> dict[int, Any]:
    jobs = [Job(info, sent) for info in shards().clients]
    return {info.id: answer for info, answer in InProcess(place).exchange(RoundId("train", 0, 0), jobs)}


def test_one_client_in_process_cannot_change_what_the_next_is_sent(tmp_path: Path) -> None:
    state = torch.zeros(2)
    answers = exchange(site(tmp_path, look), pack(Sent(state)))
    assert unpack(Got, answers[4].upload).total.item() == 0 + 1 + 2
    assert unpack(Got, answers[7].upload).total.item() == 2 + 3 + 4 + 2
    assert state.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GenfedError("no class 3"), "no class 3"),
        (ValueError("two\nlines"), "ValueError: two"),
        (MemoryError(), "MemoryError"),
        (KeyError("x"), "KeyError: 'x'"),
        (SystemExit(4), "SystemExit: 4"),
        (type("Odd", (BaseException,), {})("odd"), "Odd: odd"),
    ],
)
def test_a_client_that_fails_is_told_of_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException, reason: str
) -> None:
    def work(client: Client, sent: Sent) -> Reply[Got]:
        if client.info.id == 4:
            raise error
        return look(client, sent)

    answers = exchange(site(tmp_path, work), pack(Sent(torch.zeros(1))))
    place = r"; test_client_runner\.py, line \d+, in test_a_client_that_fails\S+\.work"
    assert re.fullmatch(re.escape(reason) + ("" if reason == "no class 3" else place), answers[4].reason)
    assert answers[7].weight == 3.0


@pytest.mark.parametrize("reply", [None, Reply(3), Reply(Got([1], None)), Reply(Note("x"), weight="much")])  # type: ignore[arg-type]
def test_a_reply_that_is_none_is_a_failure(tmp_path: Path, reply: Any) -> None:
    def work(client: Client, sent: Sent) -> Reply[Got]:
        return reply  # type: ignore[no-any-return]

    assert all(isinstance(a, Failure) for a in exchange(site(tmp_path, work), pack(Sent(torch.zeros(1)))).values())


def test_what_was_sent_must_be_what_the_work_takes(tmp_path: Path) -> None:
    answers = exchange(site(tmp_path, look), pack(Note("x")))
    assert answers[4] == Failure("Sent: Sent lacks x")


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()

    def failing() -> None:
        with use_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.get_num_threads() == before
