import dataclasses
import json
import math
import random
from typing import Any

import pytest

from genfed.core.errors import GenfedError
from genfed.report.results import (
    ClientScore,
    Measures,
    PersonalScore,
    PhaseCost,
    Point,
    Row,
    from_json,
    to_json,
)
from genfed.report.summarize import summarize_trial
from tests.report.fake import fake_report, quality_row


def row(phase: str, number: int, step: int, client: int | None, **rest: Any) -> Row:
    return {"method": "m", "seed": 0, "step": step, "phase": phase, "round": number, "client": client, **rest}


def of_client(phase: str, number: int, step: int, client: int, **rest: Any) -> Row:
    architecture = "mlp" if client == 2 else "cnn"
    cost = {"up_bytes": 10, "down_bytes": 100, "seconds": 0.5}
    return row(phase, number, step, client, architecture=architecture, examples=7, **cost, **rest)


def scores(number: int, step: int, correct: tuple[list[int], ...]) -> list[Row]:
    total = [2, 2, 0]
    return [of_client("evaluate", number, step, c, correct=right, total=total) for c, right in enumerate(correct)]


ROWS = [
    of_client("train", 0, 0, 0, loss=1.0),
    of_client("train", 0, 0, 2, loss=2.0),
    row("train", 0, 0, None, seconds=0.75, failed={"1": "sent NaN"}),
    *scores(0, 1, ([0, 0, 0], [2, 0, 0], [2, 2, 0])),
    row("evaluate", 0, 1, None, seconds=0.25, failed={}),
    of_client("train", 1, 1, 0, loss=None),
    of_client("train", 1, 1, 2, loss=1.5),
    row("train", 1, 1, None, seconds=0.5, failed={}),
    row("synthesise", 0, 2, None, seconds=4.0, failed={}),
    *scores(1, 3, ([1, 0, 0], [2, 1, 0], [2, 2, 0])),
    row("evaluate", 1, 3, None, seconds=0.25, failed={}),
    {**of_client("train", 0, 0, 0, loss=99.0), "seed": 1},
    {**of_client("train", 0, 0, 0, loss=99.0), "method": "other"},
]


def test_a_trial_has_the_scores_of_its_last_evaluation() -> None:
    trial = summarize_trial(ROWS, "m", 0)
    # cnn: (1/4 + 3/4) / 2; mlp: 4/4
    assert trial.accuracy == 0.75
    assert trial.worst == 0.25
    assert trial.clients[0] == ClientScore(0, "cnn", 7, 0.25, (0.5, 0.0, None))
    assert [c.client for c in trial.clients] == [0, 1, 2]


def test_curves_follow_evaluations_and_rounds() -> None:
    trial = summarize_trial(ROWS, "m", 0)
    assert trial.curve == (Point("evaluate", 0, 1, 0.625), Point("evaluate", 1, 3, 0.75))
    assert trial.losses == (Point("train", 0, 0, 1.5), Point("train", 1, 1, None))


def test_costs_are_by_phase_and_scoring_is_free_of_bytes() -> None:
    trial = summarize_trial(ROWS, "m", 0)
    # Four replies of 10 bytes, over the three clients there are.
    assert trial.costs == (
        PhaseCost("train", 2, 40 / 3, 400 / 3, 2.0, 1.25),
        PhaseCost("evaluate", 2, 0, 0, 3.0, 0.5),
        PhaseCost("synthesise", 1, 0, 0, 0.0, 4.0),
    )
    assert trial.seconds == 5.75


def test_own_accuracy_is_that_of_the_last_evaluation_averaged_as_accuracy_is() -> None:
    own = {(0, 0): 0.9, (1, 0): 0.5, (1, 1): 0.75, (1, 2): 0.25}
    rows = [{**r, "own": own.get((r["round"], r["client"]))} if r["phase"] == "evaluate" else r for r in ROWS]
    trial = summarize_trial(rows, "m", 0)
    assert trial.own == (PersonalScore(0, "cnn", 0.5), PersonalScore(1, "cnn", 0.75), PersonalScore(2, "mlp", 0.25))
    assert (trial.personal_accuracy, trial.personal_worst) == ((0.625 + 0.25) / 2, 0.25)
    assert dataclasses.replace(trial, own=()) == summarize_trial(ROWS, "m", 0)
    assert (summarize_trial(ROWS, "m", 0).personal_accuracy, summarize_trial(ROWS, "m", 0).personal_worst) == (
        None,
        None,
    )


def test_a_pool_is_scored_for_its_clients() -> None:
    """Client 1 has nothing like it in the held-out part."""
    by_pool: dict[int, dict[str, float]] = {0: {"0": 0.5, "3": 1.0}, 1: {}, 2: {"2": 0.25}}
    rows = [
        {**r, "own": 0.0, "own_of": by_pool[r["client"]]} if r["phase"] == "evaluate" and r["client"] is not None else r
        for r in ROWS
    ]
    assert summarize_trial(rows, "m", 0).own == (
        PersonalScore(0, "cnn", 0.5),
        PersonalScore(2, "mlp", 0.25),
        PersonalScore(3, "cnn", 1.0),
    )


def measured(*auroc: float | None) -> list[Row]:
    """ROWS with measures in the last evaluation."""
    scored = {c: {"balanced_accuracy": 0.1 * c, "f1": 0.5, "auroc": auroc[c], "ece": 0.3 - 0.1 * c} for c in range(3)}
    found = []
    for each in ROWS:
        if (each["phase"], each["round"]) != ("evaluate", 1):
            found.append(each)
        elif each["client"] is None:
            found.append({**each, "confusion": {"0": {"0": 5, "2": 1}, "1": {"0": 2, "1": 3}, "2": {}}})
        else:
            found.append({**each, **scored[each["client"]]})
    return found


def test_measures_are_of_the_last_evaluation_averaged_as_accuracy_is() -> None:
    trial = summarize_trial(measured(0.75, 1.0, 0.5), "m", 0)
    assert trial.clients[1].measures == Measures(0.1, 0.5, 1.0, 0.3 - 0.1)
    assert trial.measures is not None
    assert trial.worst_measures is not None
    # cnn: clients 0 and 1; mlp: client 2
    assert dataclasses.astuple(trial.measures) == pytest.approx((0.125, 0.5, 0.6875, 0.175))
    assert trial.worst_measures == Measures(0.0, 0.5, 0.5, 0.3), "a high calibration error is worse"


def test_a_client_without_auroc_is_left_out_of_its_mean() -> None:
    trial = summarize_trial(measured(0.75, None, None), "m", 0)
    assert (trial.measures and trial.measures.auroc, trial.worst_measures and trial.worst_measures.auroc) == (0.75,) * 2
    none = summarize_trial(measured(None, None, None), "m", 0).measures
    assert none is not None
    assert none.auroc is None


def test_classes_are_scored_over_all_clients() -> None:
    """Each of three clients has two examples of the classes 0 and 1; one example of class 1 has no predicted class."""
    trial = summarize_trial(measured(None, None, None), "m", 0)
    assert trial.confusion == ((5, 0, 1), (2, 3, 0), (0, 0, 0))
    assert [each.sensitivity for each in trial.by_class] == [5 / 6, 3 / 6, None]
    assert [each.specificity for each in trial.by_class] == pytest.approx([4 / 6, 1.0, 11 / 12])


def test_rows_and_reports_of_older_versions_have_no_measures() -> None:
    trial = summarize_trial(ROWS, "m", 0)
    assert (trial.measures, trial.worst_measures, trial.by_class, trial.confusion) == (None, None, (), ())
    now = fake_report(2, 1)
    assert from_json(to_json(now)) == now
    older = json.loads(to_json(now))
    for each in older["trials"]:
        for name in ("measures", "worst_measures", "by_class", "confusion"):
            del each[name]
        for client in each["clients"]:
            del client["measures"]
    found = from_json(json.dumps(older))
    assert [t.accuracy for t in found.trials] == [t.accuracy for t in now.trials]
    assert not any(t.measures or c.measures for t in found.trials for c in t.clients)


def test_the_best_round_is_each_clients_own() -> None:
    """GeFL's published figures are such means."""
    earlier = scores(2, 0, ([2, 2, 0], [0, 0, 0], [0, 2, 0]))
    trial = summarize_trial([*earlier, *ROWS], "m", 0)
    # cnn: client 0 was at 4/4, 0 and 1/4, client 1 at 0, 2/4 and 3/4; mlp: client 2 at 2/4, 4/4 and 4/4
    assert trial.best == ((1 + 3 / 4) / 2 + 1) / 2
    assert summarize_trial(ROWS, "m", 0).best == ((1 / 4 + 3 / 4) / 2 + 1) / 2


def test_quartiles_are_over_clients() -> None:
    trial = summarize_trial(ROWS, "m", 0)
    assert trial.quartiles == (0.5, 0.75, 0.875)  # of 1/4, 3/4 and 1
    alone = dataclasses.replace(trial, clients=trial.clients[:1])
    assert alone.quartiles == (0.25, 0.25, 0.25)


def test_arithmetic_of_the_first_round_stands_for_all_and_is_shared_out_over_clients() -> None:
    """Two of three clients take part in each of two rounds, so a client takes part in 4/3 of them."""
    counted = [
        {**r, "flops": flops, "parameters": held}
        for r, flops, held in (
            (ROWS[0], 900.0, 5.0),
            (ROWS[1], 1500.0, 8.0),
            (of_client("x", 0, 9, 0, loss=1.0), 7.0, 9.0),
        )
    ]
    trial = summarize_trial([*counted, *ROWS[2:]], "m", 0)
    assert trial.costs[0].flops == 1200 * 4 / 3
    assert trial.flops == 1200 * 4 / 3 + 7 / 3
    assert trial.parameters == (9 + 8) / 2
    later = summarize_trial([*counted[:2], {**counted[2], "round": 1}, *ROWS[2:]], "m", 0)
    assert (later.costs[0].flops, later.flops) == (1200 * 4 / 3, None)  # of "x" no first round was counted
    assert summarize_trial(ROWS, "m", 0).flops is None


def test_a_generator_is_judged_in_a_row_of_its_own_that_costs_nothing() -> None:
    row = {**quality_row("m", 0, random.Random(0)), "epochs": 10}
    trial = summarize_trial([*ROWS, row], "m", 0)
    assert trial.quality is not None
    assert (trial.quality.samples, trial.quality.frechet) == (1000, row["frechet"])
    assert dataclasses.replace(trial, quality=None) == summarize_trial(ROWS, "m", 0)


def test_a_client_left_out_is_named() -> None:
    assert summarize_trial(ROWS, "m", 0).failures == ("train round 1: client 1 excluded: sent NaN",)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_none(loss: float) -> None:
    rows = [of_client("train", 0, 0, 0, loss=loss), *ROWS]
    assert summarize_trial(rows, "m", 0).losses[0].value is None


@pytest.mark.parametrize("number", [None, math.nan, math.inf, -1.7e308])
def test_rows_that_cannot_be_added_up_cost_only_their_own_number(number: float | None) -> None:
    """Older versions wrote what a client said; a resume reads such rows again."""
    bad = {"loss": number, "seconds": number, "flops": number, "parameters": number, "triggered": number}
    good = {"loss": 1.5, "flops": 6.0, "parameters": 4.0}
    rows = [
        {**of_client("train", 0, 0, 0), **bad},
        of_client("train", 0, 0, 2, **good),
        row("train", 0, 0, None, seconds=number, failed={}),
        *({**score, "triggered": 0.5} for score in scores(0, 1, ([1, 0, 0], [2, 0, 0], [2, 2, 0]))),
        row("evaluate", 0, 1, None, seconds=0.25, failed={}),
    ]
    rows[3] = {**rows[3], **bad}
    trial = summarize_trial(rows, "m", 0)
    assert (trial.accuracy, trial.triggered, trial.parameters) == (0.6875, 0.5, 4.0)
    assert trial.losses == (Point("train", 0, 0, None),)
    assert [(cost.phase, cost.client_seconds, cost.seconds) for cost in trial.costs] == [
        ("train", 0.5, 0.0),
        ("evaluate", 1.0, 0.25),
    ]
    assert trial.costs[0].flops == 4.0  # 6 for each of the two that trained, shared out over three clients
    assert from_json(to_json(dataclasses.replace(fake_report(2, 1), trials=(trial,)))).trials == (trial,)


def test_a_trial_without_an_evaluation_is_refused() -> None:
    with pytest.raises(GenfedError, match=r"m, seed 1: there is no evaluation"):
        summarize_trial(ROWS, "m", 1)


def test_a_client_scored_on_nothing_is_refused() -> None:
    rows = [of_client("evaluate", 0, 0, 4, correct=[0], total=[0])]
    with pytest.raises(GenfedError, match="client 4 was evaluated on no examples"):
        summarize_trial(rows, "m", 0)


def test_a_report_survives_json() -> None:
    report = fake_report()
    text = to_json(report)
    assert from_json(text) == report
    assert json.loads(text)["name"] == report.name


def test_a_report_of_before_own_data_counted_is_read() -> None:
    text = json.loads(to_json(fake_report(2, 1)))
    for table, names in ((text, ("skewed", "column", "natural")), *((trial, ("own",)) for trial in text["trials"])):
        for name in names:
            del table[name]
    assert from_json(json.dumps(text)) == fake_report(2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "Invalid JSON"),
        ("{}", "name: Field required"),
        (to_json(fake_report(1, 1)).replace('"accuracy"', '"best"', 1), "trials.0.accuracy: Field required"),
        (to_json(fake_report(1, 1)).replace("{", '{"more": 1,', 1), "more: Unexpected"),
    ],
)
def test_what_is_not_a_report_is_named(text: str, message: str) -> None:
    with pytest.raises(GenfedError, match=rf"^report\.json is not a genfed report: {message}"):
        from_json(text, "report.json")
