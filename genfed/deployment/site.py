"""A site's side of a federation: its answers to the server."""

import contextlib
import datetime
import functools
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from genfed._version import __version__
from genfed.config.architectures import Architectures
from genfed.config.reader import build_settings, read_method, read_privacy
from genfed.config.settings import Compute, Federation
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, StorageError, WithheldError, require
from genfed.core.federated_data import FederatedData
from genfed.core.files import make_folder, open_file
from genfed.core.method import Method
from genfed.core.phase import flatten_phases
from genfed.core.record import Packed, load, pack, save
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.core.text import file_name, indent_lines, one_line
from genfed.deployment import audit_log, client_noise, notices, site_schema
from genfed.deployment.memory_limit import MemoryShortageError, free_memory, limit_memory
from genfed.deployment.peer_keys import load_signer
from genfed.deployment.site_data import SiteHoldings, UnreadableDataError, describe_holdings, size_of_data
from genfed.deployment.site_settings import LocatedSite, SiteSettings, read_site
from genfed.deployment.trial_description import (
    TrialDescription,
    check_rounds,
    fingerprint_description,
    read_description,
    read_descriptions,
    read_whole,
)
from genfed.encoders.pretrained import Pretrained
from genfed.encoders.shared import list_fixed_encoders
from genfed.engines.client_storage import lock_folder
from genfed.experiment.compatibility import check_encoders, check_public_examples, trained_classifier
from genfed.experiment.local_clients import new_runner
from genfed.experiment.trial import Trial, new_server
from genfed.foundation.model import FoundationModel
from genfed.foundation.settings import Foundation
from genfed.privacy import site_budget
from genfed.privacy.compatibility import check_method, check_network, check_precision, list_batch_sizes
from genfed.privacy.dp_sum import check_sum_level
from genfed.privacy.randomness import require_privacy
from genfed.privacy.settings import DPSGD, DPFedAvg, DPSum
from genfed.report.results import EVALUATE
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.training.weights import Model, weights_of

log = logging.getLogger(__name__)
MAPPED = 8
"""Size of what a request maps into memory, in sizes of the site's data: the data, and features that clients store."""
LOG = "site.log"
"""File name of the log of errors, in the folder of the site."""


def handle(head: Mapping[str, Any], body: Packed, node: Mapping[str, Any]) -> tuple[dict[str, Any], Packed]:
    """Returns the answer to a request, which is written to the audit log first.

    Args:
        head: header of the request.
        body: record that came with it.
        node: configuration of the node, which names the site's file.

    Raises:
        GenfedError: there is no answer. The text names neither paths nor data.
    """
    if "site" not in node:
        raise GenfedError("the node has no site; start it with: --node-config 'site=\"/path/of/SITE.toml\"'")
    try:
        site = read_site(str(node["site"]))
    except GenfedError:
        log.exception("the site's file cannot be read")
        raise GenfedError("the site's file cannot be read; its own log says more") from None
    torch.set_num_threads(site.config.threads)
    with _hide_errors(site, head), limit_memory(site.config.device, MAPPED * size_of_data(site)):
        version = head.get("genfed")
        if version != __version__:
            raise GenfedError(f"the server has genfed {version}, and site {site.config.name} has {__version__}")
        if (meant := head.get("site", site.config.name)) != site.config.name:
            raise GenfedError(
                f"this message is for site {one_line(repr(meant), 80)}, and this is site {site.config.name}: a site "
                "keeps its name during a run"
            )
        answers = {
            "hello": _describe,
            "summary": _summarize,
            "schema": _take_schema,
            "initial": _initial,
            "prepare": _prepare,
            "work": _work,
            "spent": _spent,
            "refused": _take_refusal,
        }
        if (answer_to := answers.get(str(head.get("ask")))) is None:
            raise GenfedError(f"site {site.config.name} does not answer to {head.get('ask')!r}")
        answer, upload = answer_to(site, head, body)
        audit_log.write_audit(
            site, head, len(json.dumps(answer)) + upload.nbytes, sorted(answer), sorted(_fields(upload))
        )
        return answer, upload


@contextlib.contextmanager
def _hide_errors(site: LocatedSite, head: Mapping[str, Any]) -> Iterator[None]:
    """Writes an error of the block to the site's log, and raises one whose text the server may see."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the site's own code may fail in any way, also by SystemExit
        text = one_line(_public_text(error))
        if head.get("ask") == "hello" and f"site {site.config.name}" not in text:
            text = f"site {site.config.name}: {text}"  # the server does not know yet whose answer it is
        try:
            make_folder(site.folder)
            notices.add(site, f"a request of the server was refused or failed: {text}; {site.folder / LOG} says more")
            with open_file(site.folder / LOG, "a") as file:
                file.write(f"{audit_log.utc_now()} {json.dumps(audit_log.describe_request(head))} {_log_text(error)}\n")
            audit_log.write_audit(site, head, len(text.encode()), ["failed"], [])
        except OSError:
            text = "it cannot write to its own folder"
        raise (StorageError if isinstance(error, StorageError) else GenfedError)(text) from None


def _log_text(error: BaseException) -> str:
    """Returns the text of an error for the site's own log: one line for a refusal, all of any other error."""
    cause = _foreign_cause(error)
    if isinstance(error, WithheldError):
        return "failed:\n" + indent_lines("".join(traceback.format_exception(error)))
    if isinstance(cause, RuntimeError) and str(cause).startswith("Error(s) in loading state_dict"):
        return "refused: the tensors that were sent do not fit the network"
    if isinstance(error, GenfedError) and isinstance(cause, ValidationError | None):
        return f"refused: {one_line(error)}"
    return "failed:\n" + indent_lines("".join(traceback.format_exception(error)))


def _public_text(error: BaseException) -> str:
    """Returns the text that the server may see. Messages of genfed pass; of any other exception, which may quote data,
    only the type does, also where a message of genfed was made of it.
    """
    if isinstance(error, WithheldError):
        return str(error)
    text, cause = str(error), _foreign_cause(error)
    if isinstance(error, UnreadableDataError) or isinstance(cause, OSError) or "/" in text or "\\" in text:
        return "it could not read or write a file; its own log says more"
    return text if cause is None else f"{type(cause).__name__}; its own log says more"


def _foreign_cause(error: BaseException | None) -> BaseException | None:
    """Returns the first exception in the chain of causes that is not genfed's. None: all are."""
    while isinstance(error, GenfedError):
        if isinstance(error, MemoryShortageError):
            return None
        error = error.__cause__ or error.__context__
    return error


def _describe(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Answers with the fields of a `SiteDescription`."""
    holding, config = describe_holdings(site), site.config
    return {
        "name": config.name,
        "architecture": config.architecture,
        "kind": holding.task.kind,
        "shape": list(holding.task.shape),
        "classes": list(holding.task.classes),
        "examples": len(holding.train),
        "held_out": len(holding.held_out),
        "part": site.config.part,
        "encoder": holding.encoder,
        "torch": torch.__version__,
        "device": config.device,
        "memory": free_memory(),
        "clock": datetime.datetime.now(datetime.UTC).timestamp(),
        "demands": config.has_demand,
        "open": site_schema.is_open(site),
    }, Packed({}, "{}")


def _summarize(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Answers with what the site says of the columns of its table, so that a schema can be agreed on."""
    return {"summary": site_schema.summarize_site(site)}, Packed({}, "{}")


def _take_schema(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Encodes the site's rows by the schema that the sites agreed on."""
    site_schema.take_schema(site, head.get("schema"))
    describe_holdings(site)
    return {}, Packed({}, "{}")


def _take_refusal(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Shows this site's user why the server refuses the site."""
    notices.add(site, f"the server refuses this site: {head.get('reason')}")
    return {}, Packed({}, "{}")


def _initial(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Answers with the initial weights of an architecture that only the site knows, as `initial_weights` returns
    them.
    """
    name, seed = site.config.architecture, read_whole(head, "seed", -(2**63), 2**63)
    network = Architectures().new(name, describe_holdings(site).task, stream(seed, "common", "classifier", name))
    return {}, pack(Model(weights_of(network)))


def _prepare(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Refuses a run before training, or takes part in all its trials. Nothing is charged or written."""
    _check_budgets(site)
    opened = read_descriptions(head)
    clients = [_client(head, about) for about in opened]
    holding = describe_holdings(site)
    trials = [_trial(site, holding, about, client) for about, client in zip(opened, clients, strict=True)]
    for trial in trials:
        _check_demands(site.config, trial)
        _check_networks(site.config, trial)
        client_noise.check_plan(site.config, trial)
    keys = [_key(about) for about in opened]
    ahead = [cost for trial in trials for cost in trial.estimate_cost(clients[0])]
    if site.config.privacy is not None:
        site_budget.check_ahead(site.folder, site.config.privacy, ahead, keys)
    uploads = [cost for trial in trials for cost in client_noise.estimate_cost(trial)]
    if site.config.client_privacy is not None:
        site_budget.check_ahead(site.folder, site.config.client_privacy, uploads, keys, site_budget.CLIENT_BUDGET)
    return {}, Packed({}, "{}")


def _spent(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Answers with what a trial has cost so far, as mechanisms; they follow from settings and number of examples."""
    about = read_description(head.get("open"))
    client = _client(head, about)
    return {"mechanisms": _trial(site, describe_holdings(site), about, client).spent([client])[client]}, Packed(
        {}, "{}"
    )


def _work(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Answers with the reply of the site's client to its part of a round."""
    from genfed.engines.flower.client import handle_work

    config, about = site.config, read_description(head.get("open"))
    _check_budgets(site)
    trial = _trial(site, describe_holdings(site), about, _client(head, about))
    _check_unchanged(site, trial, _key(about), head)
    account = None
    if config.privacy is not None:
        account = site_budget.SiteBudget(site.folder, config.privacy, _key(about))
    charge_upload = client_noise.charge_upload(site, trial, _key(about))
    runner = new_runner(trial, account, charge_upload, scores_only_sent=config.client_privacy is not None)
    answer, upload = handle_work(runner, dict(head), body)
    if config.has_demand and head["step"]["phase"] != EVALUATE:
        answer["metrics"] = {}  # losses and the like depend on the examples, and have neither noise nor masks
    return answer, upload


OPENED = "opened.safetensors"
"""File name of the `OpenedTrial`, in the folder of a trial."""


@dataclass(frozen=True)
class OpenedTrial:
    """A trial as it was at its first round: what the server sent about it, and what the site was."""

    about: str
    client: int
    data: str
    """Fingerprint of the site's data (`SiteHoldings.content`)."""
    budgets: tuple[str, ...]
    """Names of the ledgers to which the trial is charged."""


def _check_unchanged(site: LocatedSite, trial: Trial, key: site_budget.TrialKey, head: Mapping[str, Any]) -> None:
    """Refuses requests that describe a trial otherwise than the first one did, and any with other data than then. At
    the first one, checks the network.

    Raises:
        GenfedError: the request does, the data have changed, or the trial does not protect the site as it must.
    """
    config, file = site.config, trial.folder / OPENED
    now = OpenedTrial(head["open"], head["client"], trial.identity, _budgets(config))
    _check_demands(config, trial)  # they may have changed since
    with lock_folder(trial.folder):
        if not file.exists():
            _check_new(site, key)
            _check_networks(config, trial)
            client_noise.check_plan(config, trial)
            if trial.privacy or trial.round_noise:
                trial.settle_plan()  # two requests at once would both write it
            for budget in now.budgets:
                site_budget.begin_ledger(site.folder, budget)
            save(now, file)
        elif (first := load(OpenedTrial, file)) != now:
            if (first.about, first.client) != (now.about, now.client):
                raise GenfedError("the server describes this trial otherwise than before: begin the run anew")
            if first.data != now.data:
                raise GenfedError(
                    f"the data of site {config.name} have changed since the first round of this run: put them back as "
                    "they were, or begin the run anew"
                )
            raise GenfedError(
                f"the privacy budgets of site {config.name} are others than in the first round of this run: change its "
                "file back, or begin the run anew"
            )


def _check_new(site: LocatedSite, key: site_budget.TrialKey) -> None:
    """Refuses to begin a trial that was charged before: its folder was deleted, and with it what says which work the
    charges pay for, so that the server could have it done again.
    """
    for budget in (site_budget.BUDGET, site_budget.CLIENT_BUDGET):
        if site_budget.read_site_ledger(site.folder, budget).charges_of(key):
            raise GenfedError(
                f"site {site.config.name} has taken part in this run before, and what it stored then was deleted: "
                "begin the run anew"
            )


def _budgets(config: SiteSettings) -> tuple[str, ...]:
    """Returns the names of the ledgers of the budgets that a site's file has."""
    limits = {site_budget.BUDGET: config.privacy, site_budget.CLIENT_BUDGET: config.client_privacy}
    return tuple(name for name, limit in limits.items() if limit is not None)


def _check_budgets(site: LocatedSite) -> None:
    """Refuses to take part if the ledger of a budget was deleted, or an older one put back: the site would have a new
    budget, or one that is charged less than it was.
    """
    for name in _budgets(site.config):
        try:
            site_budget.read_site_ledger(site.folder, name)
        except GenfedError as error:
            raise GenfedError(f"site {site.config.name}: {error}") from None
    missing = [name for name in _budgets(site.config) if not (site.folder / name).exists()]
    if not missing:
        return
    for file in site.folder.glob(f"runs/*/*/*/{OPENED}"):
        if lost := [name for name in missing if name in load(OpenedTrial, file).budgets]:
            raise GenfedError(
                f"site {site.config.name} has lost {lost[0]}, which says what its privacy budget was charged; put it "
                "back as it was"
            )


def _client(head: Mapping[str, Any], about: TrialDescription) -> int:
    return read_whole(head, "client", 0, about.federation.clients)


def _key(about: TrialDescription) -> site_budget.TrialKey:
    return site_budget.TrialKey(about.run, about.label, about.seed)


def _trial(site: LocatedSite, holding: SiteHoldings, about: TrialDescription, client: int) -> Trial:
    """Returns the trial that the server describes, as this site knows it: without the other clients' data.

    Raises:
        GenfedError: it names code that the site does not allow, has too many rounds, or other classes than the site's.
    """
    config = site.config
    _check_names(about.method, config)
    label = _check_folder_name(about.label)
    method = _restrict_models(read_method(about.method, f"method.{label}"), config)
    check_rounds(method.phases(), about.federation.clients)
    if holding.task.classes != about.classes:
        raise GenfedError(f"the classes of site {config.name} are no longer those agreed on: begin the run anew")
    clients = range(about.federation.clients)
    of = {client: ClientInfo(client, config.architecture, len(holding.train))}
    return Trial(
        label=label,
        seed=about.seed,
        method=method,
        # No personal test set: its held-out examples are its own already.
        shards=FederatedData(
            holding.task,
            tuple(of.get(i, ClientInfo(i, "", 0)) for i in clients),
            tuple((0, len(holding.train) if i == client else 0) for i in clients),
            holding.train,
            holding.held_out,
        ),
        folder=site.folder / "runs" / _check_folder_name(about.run) / label / f"seed-{about.seed}",
        identity=holding.content,
        federation=Federation(clients=about.federation.clients, client_fraction=about.federation.client_fraction),
        compute=Compute(device=config.device, threads=config.threads, precision=about.precision),
        new_network=functools.partial(_new_network, config, Architectures()),
        evaluate_every=0,
        counts_flops=about.flops and about.privacy is None,
        secure=None
        if about.secure_aggregation is None
        else build_settings(SecureAggregation, about.secure_aggregation, "secure_aggregation."),
        signer=None if about.secure_aggregation is None else load_signer(site),
        privacy=None if about.privacy is None else read_privacy(about.privacy, DPSGD),
        client_privacy=None if about.client_privacy is None else read_privacy(about.client_privacy, DPFedAvg),
        description=fingerprint_description(about),
        sum_privacy=None if about.sum_privacy is None else read_privacy(about.sum_privacy, DPSum),
        at_site=True,
    )


def _check_demands(config: SiteSettings, trial: Trial) -> None:
    """Refuses a trial that does not protect the site as its file demands, or not as the run says."""
    privacy = trial.privacy
    if trial.secure is not None:
        require("cryptography", extra="privacy", what="[secure_aggregation]")
    if trial.client_privacy is not None:
        require_privacy('[privacy] kind = "dp_fedavg"')
    if trial.sum_privacy is not None:
        _check_sums(config, trial, trial.sum_privacy)
    if config.privacy is not None and privacy is None:
        raise GenfedError("it takes part only under [privacy], since its file has a privacy budget")
    if privacy is not None:
        if config.privacy is not None and privacy.reproducible_noise:
            raise GenfedError("it refuses privacy.reproducible_noise: anyone who knows the seed knows the noise")
        check_precision(trial.compute.precision)
        check_method(trial.label, trial.method)
        if trial.secure is not None or trial.client_privacy is not None:
            raise GenfedError("DP-SGD with [secure_aggregation] or DP-FedAvg is not implemented: remove one of them")
    client_noise.check_demands(config, trial)
    _check_small_classes(config, trial)
    if trial.secure is not None and trial.secure.minimum_group > trial.federation.clients:
        raise GenfedError(
            f"secure_aggregation.minimum_group = {trial.secure.minimum_group}: there are {trial.federation.clients} "
            "clients"
        )
    if config.minimum_group is not None and any(phase.aggregate for phase in flatten_phases(trial.method.phases())):
        if trial.secure is None:
            raise GenfedError(
                f"it uploads only under [secure_aggregation], and {trial.label} would upload without masks"
            )
        if trial.secure.minimum_group < config.minimum_group:
            raise GenfedError(
                f"secure_aggregation.minimum_group = {trial.secure.minimum_group}: it needs sums of "
                f"{config.minimum_group} uploads "
                "or more"
            )
        if trial.secure.neighbors is not None:
            raise GenfedError(
                "secure_aggregation.neighbors: on a ring no client knows how many uploads are in a sum; remove it"
            )
        if config.peer_keys and trial.secure.corrupt_share < (least := SecureAggregation().corrupt_share):
            raise GenfedError(
                f"secure_aggregation.corrupt_share = {trial.secure.corrupt_share:g}: it has peer_keys, and needs "
                f"{least:g} or more to be withstood"
            )


def _check_small_classes(config: SiteSettings, trial: Trial) -> None:
    """Refuses a trial in which the site would upload something of a class of fewer examples than its file demands."""
    if (least := config.minimum_class_count) is None:
        return
    for phase in flatten_phases(trial.method.phases()):
        if phase.aggregate and not phase.scores and phase.smallest_class < least:
            found = phase.smallest_class
            raise GenfedError(
                f"minimum_class_count = {least} in its file: in phase {phase.name} of {trial.label} it would upload "
                + (f"something of classes of {found} examples" if found else "something of every class that it has")
                + "; a generator of sums with this minimum_class_count, or a larger one, is allowed"
            )


def _check_sums(config: SiteSettings, trial: Trial, how: DPSum) -> None:
    """Refuses a trial under privacy of sums that the site's file does not allow, or that protects nothing."""
    if trial.privacy is not None or trial.client_privacy is not None:
        raise GenfedError("privacy of sums with DP-SGD or DP-FedAvg is not implemented: remove one of them")
    if config.privacy is not None:
        raise GenfedError(
            'it takes part only under [privacy] kind = "dp_sgd", since its file has a privacy budget: under "dp_sum" '
            "the server, or the other sites, add the noise that protects its examples"
        )
    check_sum_level(how, {trial.label: trial.schedule})


def _check_networks(config: SiteSettings, trial: Trial) -> None:
    """Refuses a trial under [privacy] if a network that the site would train cannot be trained by DP-SGD: its
    classifier, or one that the method brings. Each is checked again when it is trained. Refuses an encoder that mixes
    examples, under privacy of examples, and one that is computed from the site's own as if they were public.
    """
    task, own = trial.shards.task, [info for info in trial.shards.clients if info.architecture]
    server = new_server(task, tuple(own), trial.compute, trial.new_network, trial.seed, 0, "check")
    check_public_examples(trial.label, trial.method, config.data, (trial.shards.train, trial.shards.held_out))
    if trial.privacy is not None or trial.sum_privacy is not None:
        check_encoders(trial.label, trial.method, server)
    if trial.privacy is not None:
        sizes = list_batch_sizes([trial.method])
        check_network(trained_classifier(config.architecture, task, trial.new_network), batch_sizes=sizes)
        for network in trial.method.trained_networks(server):
            check_network(network, batch_sizes=sizes)


def _new_network(config: SiteSettings, known: Architectures, name: str, task: Task, rng: torch.Generator) -> nn.Module:
    """Makes a network of the site's own architecture, or of one that the site allows."""
    if name != config.architecture:
        _check_name(name, config)
    return known.new(name, task, rng)


def _check_names(table: Any, config: SiteSettings) -> None:
    """Refuses a method's table that names code which the site has not allowed."""
    for key, value in table.items() if isinstance(table, dict) else ():
        if key == "kind":
            _check_name(str(value), config)
        _check_names(value, config)


def _check_name(name: str, config: SiteSettings) -> None:
    if ":" in name and name not in config.allow:
        raise GenfedError(f"site {config.name} does not allow {name}; its SITE.toml would name it in allow")


@settings
class _ClosedModel(Foundation):
    """A foundation model that the site does not open; methods of which only the server opens it can be run."""

    site: str

    def load(self, task: Task, device: torch.device, precision: Literal["float32", "bfloat16"]) -> FoundationModel:
        raise GenfedError(
            f'site {self.site} opens no foundation.model but "shipped" and those that its SITE.toml names in allow'
        )


def _restrict_models(method: Method[Any], config: SiteSettings) -> Method[Any]:
    """Returns the method so that it opens no foundation model at this site unless the site allows it.

    Raises:
        GenfedError: its clients open a captioner, or the model of an encoder, that the site does not allow.
    """
    models = {encoder.model for _, encoder in list_fixed_encoders(method) if isinstance(encoder, Pretrained)}
    if not models <= {*config.allow}:
        raise GenfedError(
            f"site {config.name} opens no model of an encoder but those that its SITE.toml names in allow"
        )
    given = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
    if given.get("captioner") not in (None, *config.allow):
        raise GenfedError(f"site {config.name} opens no captioner but those that its SITE.toml names in allow")
    closed = {
        name: _ClosedModel(site=config.name, **vars(value))
        for name, value in given.items()
        if isinstance(value, Foundation) and value.model not in ("shipped", *config.allow)
    }
    return replace(method, **closed) if closed else method  # type: ignore[type-var]


def _check_folder_name(name: Any) -> str:
    """Returns a name that may be that of a folder.

    Raises:
        GenfedError: it may not.
    """
    if not isinstance(name, str) or file_name(name, "") != name:
        raise GenfedError(f"{one_line(repr(name), 80)} cannot name a folder")
    return name


def _fields(upload: Packed) -> list[str]:
    return list(json.loads(upload.skeleton))
