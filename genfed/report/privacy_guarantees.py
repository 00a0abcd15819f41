"""What differential privacy guarantees in a run, in sentences."""

from collections.abc import Sequence

from genfed.privacy.guarantee import Level, PrivacyGuarantee
from genfed.report.results import Report

_LIMITS: dict[Level, Sequence[str]] = {
    "example": (
        "The number of examples of each client is assumed to be public: it weights averages, and sets how batches are "
        "drawn and how large sums can be. Losses, accuracies on clients' own data and FLOP counts do not leave the "
        "clients. Timing does.",
        "A person with k examples has k times this ε, and a larger δ. If several methods or seeds of this run are "
        "published, their ε add up.",
        "This page itself is not covered: the class counts, real images, generator metrics and audits on it were made "
        "with access to all data.",
    ),
    "client": (
        "Architectures and numbers of examples are assumed to be public. So is who participates in which round, since "
        "it follows from the seed. Where clients are drawn in secret, ε holds only against those who do not learn who "
        "participated, which this page, the run's log and its metrics show.",
        "If several methods or seeds of this run are published, their ε add up.",
        "This page itself is not covered: its losses, accuracies, failures, times, class counts, real images, "
        "generator metrics and audits come from what the server knows of clients.",
    ),
}

_VOID = (
    "not protected. No client uploads anything, so nothing gets noise: its classifiers may reveal training examples to "
    "those who are given them."
)


def describe_guarantees(report: Report) -> list[str]:
    """Returns a sentence or two per method on what differential privacy protects; empty: none was requested."""
    lines = []
    for method in report.methods:
        found = [trial.protection for trial in report.of(method) if trial.protection]
        if found:
            lines.append(f"{method}: {_describe_guarantee(found)}")
        elif report.protected:
            lines.append(f"{method}: {_VOID}")
    return lines


def describe_limits(report: Report) -> Sequence[str]:
    """Returns what these guarantees do not cover."""
    return _LIMITS[report.protected or "example"]


def _describe_guarantee(found: Sequence[PrivacyGuarantee]) -> str:
    first = found[0]
    spent = [each.epsilon for each in found if each.epsilon is not None]
    if first.is_void:
        return _VOID
    if len(spent) < len(found):
        return f"{_name_clipped(first)}, but no noise was added: ε = ∞, nothing is protected."
    budget = f"ε = {max(spent):.2f} at δ = {first.delta:g}"
    if any(each.reproducible_noise for each in found):
        return (
            "not private. The noise can be computed again from the run's seed. With noise from the operating system, "
            f"it would be {budget}. {_describe_mechanism(found)}"
        )
    largest = (
        "for each of its models on its own; all of them are trained on the same examples"
        if first.pooled
        else "for each example, over all releases of one seed"
        if first.clipped
        else "for the client that spent most, over all phases and rounds of one seed"
    )
    target = "" if first.target is None else f" The budget was {first.target:g}."
    return f"{budget} ({largest}). It protects {_describe_protected(first)}.{target} {_describe_mechanism(found)}"


def _name_clipped(guarantee: PrivacyGuarantee) -> str:
    if guarantee.clipped:
        return f"{guarantee.clipped} was clipped to a norm of {guarantee.max_grad_norm:g}"
    what = "updates" if guarantee.level == "client" else "gradients"
    return f"{what} were clipped to {guarantee.max_grad_norm:g}"


def _describe_protected(guarantee: PrivacyGuarantee) -> str:
    if guarantee.clipped:
        what = "every single training example of all clients, against an attacker who knows all other examples and sees"
        if guarantee.distributed:
            return f"{what} what the server sees, if enough clients are honest: noisy sums"
        return f"{what} what the server releases. The server itself sees each upload, and must be trusted"
    if guarantee.level == "example":
        return (
            "every single training example, against an attacker who sees all that the client sends and knows all other "
            "examples"
        )
    server = (
        "It also holds against the server, which sees only sums, if the server follows the protocol and enough clients "
        "are honest"
        if guarantee.distributed
        else "The server itself sees each upload, and must be trusted"
    )
    return (
        "every client with all its examples, against an attacker who sees what the server sends and holds in the end "
        f"and knows all other clients. {server}"
    )


def _describe_mechanism(found: Sequence[PrivacyGuarantee]) -> str:
    first, least = found[0], min(each.noise_multiplier[0] for each in found)
    most = max(each.noise_multiplier[1] for each in found)
    noise = f"{least:.3g}" if f"{least:.3g}" == f"{most:.3g}" else f"{least:.3g} to {most:.3g}"
    notes = sorted({each.accountant_note for each in found if each.accountant_note})
    counted = " and ".join(sorted({each.accountant.upper() for each in found}))
    instead = f" (the other one was set: {'; '.join(notes)})" if notes else ""
    rounds = "rounds" if first.level == "client" else "releases" if first.clipped else "steps"
    formula = "exact formula of the Gaussian mechanism"
    by = formula if counted == "EXACT" else f"{counted} accountant of Opacus"
    clipped = _name_clipped(first).replace(" was ", " ").replace(" were ", " ")
    return f"{first.mechanism}; noise multiplier {noise}, {clipped}, up to {first.steps:,} {rounds}, {by}{instead}."
