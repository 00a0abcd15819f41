"""What the pictures' axes say."""

import re
from dataclasses import replace

import pytest

from genfed.report.figures import draw_accuracy, draw_losses
from tests.report.fake import fake_report


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_are_whole_however_few_there_are(rounds: int) -> None:
    """Two seeds of a phase of one round have a single x."""
    report = fake_report(clients=2, seeds=2)
    trials = tuple(
        replace(
            trial,
            losses=tuple(point for point in trial.losses if point.round < rounds),
            curve=tuple(replace(point, step=i) for i, point in enumerate(trial.curve[:rounds])),
        )
        for trial in report.trials
    )
    short = replace(report, trials=trials)
    for picture in (draw_accuracy(short), *draw_losses(short).values()):
        label = "finished rounds, over all phases"
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
        x_axis = texts[: texts.index(label if label in texts else "round")]
        assert x_axis
        assert all(text.strip().isdecimal() for text in x_axis), x_axis
