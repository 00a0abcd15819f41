"""The notes of a report: on attacks, robust aggregation, secure aggregation, training that diverged, and generators
that ignore labels.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from genfed.config import registry
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo, list_groups
from genfed.core.schedule import list_upload_phases
from genfed.methods.bases.federated_generator import FederatedGenerator
from genfed.report.generator_verdict import describe_ignored_labels, find_chance
from genfed.report.results import TrialResult
from genfed.robustness.robust_mean import GroupedRule, describe_uncovered
from genfed.secure_aggregation.graph import exposure
from genfed.secure_aggregation.settings import SecureAggregation


def write_notes(
    config: Config,
    clients: Mapping[int, Sequence[ClientInfo]],
    trials: Sequence[TrialResult],
    class_counts: Mapping[str, Sequence[Sequence[int]]],
) -> tuple[str, ...]:
    """Returns the notes of a report, a line each. Empty: no attack, robust rule or secure aggregation, no training that
    diverged, and no generator that ignores labels.

    Args:
        config: the settings of the run.
        clients: the clients of the federation, by seed.
        trials: the results of the trials.
        class_counts: training examples per client and class, by seed; without the seeds whose examples lie elsewhere.
    """
    lines = []
    if attack := config.attack:
        kind = registry.name_of(registry.ATTACKS, type(attack))
        malicious = {seed: attack.attackers(infos, seed) for seed, infos in clients.items()}
        count, total = len(next(iter(malicious.values()))), len(next(iter(clients.values())))
        where = f" in the phases {', '.join(attack.phases)}" if attack.phases else ""
        ids = "; ".join(f"seed {seed}: {', '.join(map(str, ids[:20]))}" for seed, ids in malicious.items())
        lines.append(
            f"This run simulates an attack: {count} of {total} clients {attack.about}{where} ({kind}; {ids}). "
            "Scores are over all clients, including the malicious ones."
        )
    if config.aggregation:
        kind = registry.name_of(registry.AGGREGATIONS, type(config.aggregation))
        what = "add up" if isinstance(config.aggregation, GroupedRule) else "average"
        lines.append(f"Uploads that a method would {what} are reduced by {kind} instead.")
        federated = {label: method for label, method in config.method.items() if not method.pooled}
        uncovered = [
            describe_uncovered(label, list_upload_phases(each), config.aggregation, kind)
            for label, each in federated.items()
        ]
        lines += filter(None, uncovered)
    if config.secure_aggregation:
        lines.append(_describe_masks(config, config.secure_aggregation, clients))
    for label in dict.fromkeys(trial.method for trial in trials):
        rates = [trial.triggered for trial in trials if trial.method == label and trial.triggered is not None]
        if rates:
            lines.append(
                f"{label}: with the trigger, {100 * fmean(rates):.1f} % of the examples of other classes are "
                "classified as the attack's target class."
            )
    lines += _describe_divergence(trials)
    lines += _judge_generators(config, trials, class_counts)
    return tuple(lines)


def _describe_divergence(trials: Sequence[TrialResult]) -> Iterator[str]:
    """Yields a line for each trial whose last loss is not finite at some client."""
    for trial in trials:
        if trial.losses and (last := trial.losses[-1]).value is None:
            yield (
                f"{trial.method}, seed {trial.seed}: training has diverged: in {last.phase} round {last.round + 1} the "
                "loss is not finite. Examples without finite scores count as wrong. Lower the learning rate."
            )


def _judge_generators(
    config: Config, trials: Sequence[TrialResult], class_counts: Mapping[str, Sequence[Sequence[int]]]
) -> Iterator[str]:
    """Yields a line for each trial whose generator ignores labels."""
    for trial in trials:
        if (q := trial.quality) is None or q.stored or (counts := class_counts.get(str(trial.seed))) is None:
            continue
        chance = find_chance([sum(of_class) for of_class in zip(*counts, strict=True)])
        verdict = describe_ignored_labels(q.right_class, chance, q.train_on_real, q.train_on_synthetic)
        if verdict:
            method = config.method.get(trial.method)
            advice = f" {method.advise_on_labels()}." if isinstance(method, FederatedGenerator) else ""
            yield f"{trial.method}, seed {trial.seed}: {verdict}.{advice}"


def _describe_masks(config: Config, how: SecureAggregation, clients: Mapping[int, Sequence[ClientInfo]]) -> str:
    """Returns what secure aggregation hid, and from which server."""
    text = (
        "Uploads were added up under masks (secure aggregation). A server that follows the protocol learned only their "
        "sums, and for each client the cost of its messages and the scores of its classifier; one that lies only if it "
        "invented no client and no key, which sites check that have peer_keys."
    )
    if how.neighbors is None:
        return text
    phases = [phase for method in config.method.values() if not method.pooled for phase in list_upload_phases(method)]
    sizes = {
        size
        for infos in clients.values()
        for phase in phases
        for size in Counter(group for info in infos for group in list_groups(phase.aggregate, info)).values()
    }
    most = max((exposure(size, how) for size in sizes), default=0.0)
    return (
        text.partition("; one that lies")[0] + f". With {how.neighbors} neighbors, an upload could be read in a round "
        f"with a probability of at most {most:.1g}, if {how.corrupt_share:g} of the clients cooperate with that server."
    )
