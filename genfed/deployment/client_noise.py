"""What a site demands for itself as a whole: uploads only under masks, with noise of its own."""

import functools
from collections.abc import Callable

from genfed.core.errors import GenfedError
from genfed.core.phase import flatten_phases
from genfed.deployment.site_settings import LocatedSite, SiteSettings
from genfed.experiment.trial import Trial
from genfed.privacy.accounting import Mechanism
from genfed.privacy.compatibility import check_client_level
from genfed.privacy.ledger import Charge
from genfed.privacy.plan import count_charged_rounds, plan_client_noise
from genfed.privacy.site_budget import CLIENT_BUDGET, SiteBudget, TrialKey


def check_demands(config: SiteSettings, trial: Trial) -> None:
    """Refuses a trial of which something would leave without the noise that the site's file demands: an upload, or
    scores of a classifier that the site trained.

    Raises:
        GenfedError: the reason.
    """
    how, demand = trial.client_privacy, config.client_privacy
    working = [phase for phase in flatten_phases(trial.method.phases()) if phase.work is not None]
    if demand is None or not working:
        return
    own = next((phase.name for phase in working if not phase.aggregate), None)
    if own is not None or trial.method.classifier_reads_storage or trial.method.classifier_reads_data:
        what = f"phase {own} gets no noise" if own else "its classifier is the site's own, whose scores get no noise"
        raise GenfedError(f"its file has [client_privacy], and it takes no part in {trial.label}: {what}")
    if how is None or trial.secure is None:
        raise GenfedError(
            "it uploads only with noise of its own, since its file has [client_privacy]: the run needs [privacy] "
            'kind = "dp_fedavg" and [secure_aggregation]'
        )
    if trial.secure.neighbors is not None:
        raise GenfedError(
            "its noise is a share of that of all clients, so it takes part only in sums of all of them: the run sets "
            "secure_aggregation.neighbors"
        )
    if how.reproducible_noise:
        raise GenfedError("it refuses privacy.reproducible_noise: anyone who knows the seed knows the noise")


def check_plan(config: SiteSettings, trial: Trial) -> None:
    """Refuses a trial whose noise protects less than it seems to, or less than the site demands. This may take seconds,
    so it is done once.

    Raises:
        GenfedError: the reason.
    """
    how = trial.client_privacy
    if how is not None and trial.secure is not None:
        check_client_level(how, {trial.label: trial.schedule}, trial.secure.minimum_group, warns=False)
        _check_noise(config, trial, plan_client_noise(how, trial.schedule))


def _check_noise(config: SiteSettings, trial: Trial, noise: float) -> None:
    least = config.client_privacy.noise_multiplier if config.client_privacy else None
    if least is not None and noise < least:
        raise GenfedError(f"{trial.label} has a noise multiplier of {noise:.4g}, and its file demands {least:g}")


def estimate_cost(trial: Trial) -> list[Mechanism]:
    """Returns what a trial's uploads with the site's own noise will cost. Empty: there are none, or not known in
    advance.
    """
    if (how := trial.client_privacy) is None or trial.secure is None:
        return []
    rounds = count_charged_rounds(how, trial.schedule)
    return [(plan_client_noise(how, trial.schedule), 1.0, rounds)] if rounds else []


def charge_upload(site: LocatedSite, trial: Trial, key: TrialKey) -> Callable[[str], None] | None:
    """Returns what charges an upload of a phase to the budget that the site demands, before the upload is made. None:
    the site demands none.

    Raises:
        GenfedError: the noise is less than the site's file demands now.
    """
    if (demand := site.config.client_privacy) is None or trial.client_privacy is None:
        return None
    noise = trial.settle_plan().common_multiplier
    _check_noise(site.config, trial, noise)
    return functools.partial(_charge, SiteBudget(site.folder, demand, key, CLIENT_BUDGET), noise)


def _charge(budget: SiteBudget, noise: float, phase: str) -> None:
    # A round counts in full: the server could choose the clients.
    budget.charge((Charge(phase, 0, 0, 1.0, noise, 1),))
