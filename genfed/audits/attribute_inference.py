"""Attribute inference: a sensitive category of a record of a table, from its other columns, its class and a classifier.

Fredrikson, Jha, Ristenpart, Model Inversion Attacks that Exploit Confidence Information, CCS 2015 (black box: the
most likely value by the model's answer and the values' frequencies). The advantage, how much more it reveals of members
than of others: Yeom, Giacomelli, Fredrikson, Jha, Privacy Risk in Machine Learning, CSF 2018, arXiv 1709.01604,
Definition 7.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.candidates import FEWEST, AttackedExamples, overfit_control, pair_examples
from genfed.audits.findings import Estimate, Findings, Reading
from genfed.audits.membership_metrics import mean_with_interval
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.training.evaluation import predict

ADVANTAGE, MEMBERS, OTHERS, FREQUENT = "advantage", "right for members", "right for others", "most frequent value"
OTHER_VALUES = 3
"""Number of other values, drawn at random, with which the planted leak learns a member, each with another class."""


@settings
class AttributeInference(Audit):
    """Infers a categorical column of training records from a client's final classifier."""

    sees = ("classifiers",)
    attacker = (
        "Someone who may query a client's final classifier for probabilities. They know all columns of a record but "
        "one, and its class. From held-out records of their own they know how frequent each value of it is."
    )

    columns: tuple[str, ...] | None = None
    """Sensitive categorical columns; each is an attack. None: all categorical columns."""
    members: Annotated[int, Field(ge=FEWEST)] = 2000
    """Maximum number of attacked training records over all clients, and of other records."""
    planted: Annotated[int, Field(ge=FEWEST)] = 64
    """Members that the planted leak memorizes, of one client; only these are attacked there."""
    planted_epochs: Annotated[int, Field(ge=1)] = 100
    """Epochs of the planted leak, by Adam."""
    apart_epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs of the control with nothing to find, by Adam on other records."""

    def examine(self, case: Case) -> Findings:
        sought = self._sought(case)
        attacked, known = pair_examples(case, self.members)
        own = case.held_out[known]
        final = [case.classifier(holding.client) for holding in case.holdings]
        first = max(range(len(attacked)), key=lambda place: len(attacked[place].members))
        few = replace(
            attacked[first],
            members=attacked[first].members[: self.planted],
            others=attacked[first].others[: self.planted],
        )
        untaught = self._null_classifiers(case, attacked, own)
        readings = []
        for column, places in sought.items():
            case.notify(f"column {column}, {len(places)} values")
            leak = self._planted(case, final[first], case.train[few.members], places, column)
            run, control, null = (
                attack_column(case, networks, about, own, column, places)
                for networks, about in ((final, attacked), ([leak], [few]), (untaught, attacked))
            )
            readings.append(Reading(f"value of {column}", ADVANTAGE, 0.0, run, control, null))
        count = sum(len(each.members) for each in attacked)
        notes = (
            "Advantage: the share of members whose value is guessed right, less that of held-out records of the same "
            "classes. What the classifier shows of both is what the column has to do with the others, for all records.",
            f"Planted leak: client {case.holdings[first].client.id}'s classifier, trained for {self.planted_epochs} "
            f"epochs more on {len(few.members)} members with their class, and with other values and another class.",
            f"Nothing to find: new classifiers, trained for {self.apart_epochs} epochs on records of each client that "
            "are not attacked (on held-out ones where there are none).",
        )
        return Findings(tuple(readings), {"members": count, "non-members": count, "reference": len(known)}, notes)

    def _null_classifiers(self, case: Case, attacked: Sequence[AttackedExamples], own: Data) -> list[nn.Module]:
        """Returns for each client a new classifier that no attacked record has trained."""
        found = []
        for holding, each in zip(case.holdings, attacked, strict=True):
            owner = holding.client
            server = case.server("attribute_inference", owner.id)
            draws = case.rng("attribute_inference", "weights", owner.id)
            apart = case.train[each.rest] if len(each.rest) >= FEWEST else own
            network = server.new_network(owner.architecture, draws).cpu()
            found.append(overfit_control(network, apart, self.apart_epochs, draws))
        return found

    def _sought(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Returns the features of each attacked column.

        Raises:
            NotPossible: there is no such column.
        """
        there = {name: places for name, places in case.categories.items() if len(places) > 1}
        if not there:
            raise NotPossible("the examples are no rows of a table with a column of categories")
        if unknown := [name for name in self.columns or () if name not in there]:
            raise NotPossible(f"{unknown[0]!r} is no column of categories; there are: {', '.join(there)}")
        return {name: there[name] for name in self.columns or there}

    def _planted(self, case: Case, network: nn.Module, data: Data, places: tuple[int, ...], column: str) -> nn.Module:
        """Returns a copy of the network whose answer depends on the members' values."""
        leak, classes = copy.deepcopy(network), len(case.task.classes)
        values, rng = data.x[:, places].argmax(1), case.rng("attribute_inference", "planted", column)
        parts = [data] * OTHER_VALUES
        for _ in range(OTHER_VALUES):
            other = (values + torch.randint(1, len(places), values.shape, generator=rng)) % len(places)
            parts.append(Data(replace_value(data.x, places, other), (data.y + 1) % classes))
        every = Data(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))
        return overfit_control(leak, every, self.planted_epochs, rng, learning_rate=3e-3, batch_size=32)


def attack_column(
    case: Case,
    networks: Sequence[nn.Module],
    attacked: Sequence[AttackedExamples],
    own: Data,
    column: str,
    places: tuple[int, ...],
) -> dict[str, Estimate]:
    """Guesses the values of one column and measures how often the guesses are right.

    Args:
        case: the trial.
        networks: classifiers, by client.
        attacked: the attacked records, by client.
        own: records that the attacker has.
        column: name of the column.
        places: the features that are the column's one-hot code.
    """
    found = []
    for data, part in ((case.train, "members"), (case.held_out, "others")):
        some = [data[getattr(each, part)] for each in attacked]
        found.append([guess_values(n, d, places, own) for n, d in zip(networks, some, strict=True)])
    members, others = (torch.cat([each.right for each in part]) for part in found)
    frequent = torch.cat([each.frequent for each in found[0]])
    rng = case.rng("attribute_inference", "bootstrap", column)
    return {
        ADVANTAGE: mean_with_interval(members, rng, less=others),
        MEMBERS: mean_with_interval(members, rng),
        OTHERS: mean_with_interval(others, rng),
        FREQUENT: mean_with_interval(frequent, rng),
    }


@dataclass(frozen=True)
class Guesses:
    """Guesses for the records that have a value; float64 [n], 0 or 1."""

    right: Tensor
    """Whether the guess is right."""
    frequent: Tensor
    """Whether the value is the most frequent one."""


def guess_values(network: nn.Module, data: Data, places: tuple[int, ...], own: Data) -> Guesses:
    """Guesses for each record the value that maximizes p(class | other columns, value) · frequency(value). Frequencies
    are those of `own`, with one more record of each value.
    """
    counts = own.x[:, places].sum(0).double() + 1
    prior = (counts / counts.sum()).log()
    scores = []
    for v in range(len(places)):
        chances = predict(network, replace_value(data.x, places, v)).double().log_softmax(1)
        scores.append(chances.gather(1, data.y[:, None])[:, 0] + prior[v])
    there = data.x[:, places].sum(1) > 0  # all zeros: a value that no training row had
    true = data.x[there][:, places].argmax(1)
    found = torch.stack(scores, 1)[there].argmax(1)
    return Guesses((found == true).double(), (true == prior.argmax()).double())


def replace_value(x: Tensor, places: tuple[int, ...], value: int | Tensor) -> Tensor:
    """Returns the records [n, features] with another value, or other values [n], in the column of these features."""
    changed = x.clone()
    changed[:, places] = F.one_hot(torch.as_tensor(value).expand(len(x)), len(places)).to(x)
    return changed
