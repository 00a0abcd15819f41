"""What a site answers to the server's letters."""

import contextlib
import datetime
import functools
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from genfed._version import __version__
from genfed.config.architectures import Architectures
from genfed.config.reader import build_settings, read_method
from genfed.config.settings import Compute, Federation
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, StorageError
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method
from genfed.core.phase import flatten_phases
from genfed.core.record import Packed, load, pack, save
from genfed.core.rng import stream
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.deployment import audit_log
from genfed.deployment.site_data import describe_holdings
from genfed.deployment.site_settings import LocatedSite, SiteSettings, read_site
from genfed.engines.client_storage import lock_folder
from genfed.experiment.local_clients import new_runner
from genfed.experiment.trial import Trial
from genfed.foundation.model import FoundationModel
from genfed.foundation.settings import Foundation
from genfed.privacy import client_level, site_budget
from genfed.privacy.compatibility import check_architecture, check_method, check_precision
from genfed.privacy.example_level import estimate_cost, read_charges, settle_noise_by_client
from genfed.privacy.settings import ClientPrivacy, Privacy
from genfed.secure_aggregation.crypto import check_cryptography
from genfed.secure_aggregation.settings import SecureAggregation
from genfed.training.weights import Model, weights_of

log = logging.getLogger(__name__)
LOG = "site.log"
"""In a site's folder: what went wrong."""


def handle(head: Mapping[str, Any], body: Packed, node: Mapping[str, Any]) -> tuple[dict[str, Any], Packed]:
    """The answer to a letter; `node` says where the site's file is. All that leaves is written to the audit log before.

    Raises:
        GenfedError: why there is no answer, in words that name neither paths nor data.
    """
    if "site" not in node:
        raise GenfedError("the node was not told its site; start it with: --node-config 'site=\"/path/of/SITE.toml\"'")
    try:
        site = read_site(str(node["site"]))
    except GenfedError:
        log.exception("the site's file cannot be read")
        raise GenfedError("the site's file cannot be read; its own log says more") from None
    torch.set_num_threads(site.config.threads)
    with _discreet(site, head):
        version = head.get("genfed")
        if version != __version__:
            raise GenfedError(f"the server has genfed {version}, and site {site.config.name} has {__version__}")
        ask = {"hello": _hello, "initial": _initial, "prepare": _prepare, "work": _work, "spent": _spent}.get(
            str(head.get("ask"))
        )
        if ask is None:
            raise GenfedError(f"site {site.config.name} does not answer to {head.get('ask')!r}")
        answer, upload = ask(site, head, body)
        audit_log.write_audit(
            site, head, len(json.dumps(answer)) + upload.nbytes, sorted(answer), sorted(_fields(upload))
        )
        return answer, upload


@contextlib.contextmanager
def _discreet(site: LocatedSite, head: Mapping[str, Any]) -> Iterator[None]:
    """What went wrong goes to the site's log; to the server only what names no file and quotes no data."""
    try:
        yield
    except (Exception, SystemExit) as error:
        told = _told(error)
        try:
            site.folder.mkdir(parents=True, exist_ok=True)
            with (site.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(
                    f"{audit_log.utc_now()} {json.dumps(audit_log.describe_request(head))}\n{traceback.format_exc()}\n"
                )
            audit_log.write_audit(site, head, len(told.encode()), ["failed"], [])
        except OSError:
            told = "it cannot write to its own folder"
        raise (StorageError if isinstance(error, StorageError) else GenfedError)(told) from None


def _told(error: BaseException) -> str:
    """What the server hears of an error: genfed's own words. Of another's, which may quote anything, its type's name,
    also where genfed's words were made of it.
    """
    said, cause = str(error), _foreign(error)
    if isinstance(cause, OSError) or "/" in said or "\\" in said:
        return "it could not read or write a file; its own log says more"
    return said if cause is None else f"{type(cause).__name__}; its own log says more"


def _foreign(error: BaseException | None) -> BaseException | None:
    """Of an error, and those that it was raised from or while handling, the first that is not genfed's; None: none."""
    while isinstance(error, GenfedError):
        error = error.__cause__ or error.__context__
    return error


def _hello(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    holding, config = describe_holdings(site), site.config
    return {
        "name": config.name,
        "architecture": config.architecture,
        "kind": holding.task.kind,
        "shape": list(holding.task.shape),
        "classes": list(holding.task.classes),
        "examples": len(holding.train),
        "held_out": len(holding.held_out),
        "torch": torch.__version__,
        "device": config.device,
        "memory": _free_memory(),
        "clock": datetime.datetime.now(datetime.UTC).timestamp(),
        "demands": config.privacy is not None or config.minimum_group is not None,
    }, Packed({}, "{}")


def _initial(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """The initial weights of an architecture that only the site knows, as `initial_weights` has them."""
    name = site.config.architecture
    network = Architectures().new(
        name, describe_holdings(site).task, stream(int(head["seed"]), "common", "classifier", name)
    )
    return {}, pack(Model(weights_of(network)))


def _prepare(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """Refuses a run before training, all its trials together. Nothing is charged or written."""
    client = int(head["client"])
    told = [json.loads(text) for text in head["open"]]
    trials = [_trial(site, about, client) for about in told]
    for trial in trials:
        _check_demands(site.config, trial)
        _check_network(site.config, trial)
    ahead = [mechanism for trial in trials for mechanism in estimate_cost(trial, client)]
    if site.config.privacy is not None:
        site_budget.check_ahead(site.folder, site.config.privacy, ahead, [_bill(about) for about in told])
    return {}, Packed({}, "{}")


def _spent(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    """What a trial cost so far, as mechanisms: these follow from its settings and the number of examples."""
    trial = _trial(site, json.loads(head["open"]), int(head["client"]))
    return {"mechanisms": read_charges(trial)[int(head["client"])]}, Packed({}, "{}")


def _work(site: LocatedSite, head: Mapping[str, Any], body: Packed) -> tuple[dict[str, Any], Packed]:
    from genfed.engines.flower.client import handle_work

    config, about = site.config, json.loads(head["open"])
    trial = _trial(site, about, int(head["client"]))
    _hold_to(config, trial, head)
    guard = None
    if config.privacy is not None:
        guard = site_budget.SiteBudget(trial, site.folder, config.privacy, _bill(about))
    here = new_runner(trial, guard)
    return handle_work(here, dict(head), body)


@dataclass(frozen=True)
class OpenedTrial:
    """What a server first said of a trial, and which client it called the site."""

    about: str
    client: int


def _hold_to(config: SiteSettings, trial: Trial, head: Mapping[str, Any]) -> None:
    """Refuses letters that say something else of a trial than the first one did; with that one the network is tried.

    Raises:
        GenfedError: they do, or the trial does not protect the site as it must.
    """
    file, now = trial.folder / "opened.safetensors", OpenedTrial(str(head["open"]), int(head["client"]))
    _check_demands(config, trial)  # which may be others since
    with lock_folder(trial.folder):
        if not file.exists():
            _check_network(config, trial)
            settle_noise_by_client(trial)  # what two letters at once would both write down
            if trial.client_privacy is not None:
                client_level.settle_noise(trial)
            save(now, file)
        elif load(OpenedTrial, file) != now:
            raise GenfedError("the server says something else of this trial than before: begin the run anew")


def _bill(about: Mapping[str, Any]) -> site_budget.TrialKey:
    return site_budget.TrialKey(str(about["run"]), str(about["label"]), int(about["seed"]))


def _trial(site: LocatedSite, about: Mapping[str, Any], client: int) -> Trial:
    """The trial that the server speaks of, at this site: of the other clients it knows how many there are.

    Raises:
        GenfedError: it names what the site does not run, or other classes than were agreed on.
    """
    config, holding = site.config, describe_holdings(site)
    _check_names(about["method"], config)
    label = _plain(about["label"])
    method = _guarded(read_method(about["method"], f"method.{label}"), config)
    if list(holding.task.classes) != about["classes"]:
        raise GenfedError(f"the classes of site {config.name} are no longer those agreed on: begin the run anew")
    federation_ = build_settings(Federation, about["federation"], "federation.")
    everybody = range(federation_.clients)
    of = {client: ClientInfo(client, config.architecture, len(holding.train))}
    return Trial(
        label=label,
        seed=int(about["seed"]),
        method=method,
        # Not scored on data like its own: its held-out examples are its own already.
        shards=FederatedData(
            holding.task,
            tuple(of.get(i, ClientInfo(i, "", 0)) for i in everybody),
            tuple((0, len(holding.train) if i == client else 0) for i in everybody),
            holding.train,
            holding.held_out,
        ),
        folder=site.folder / "runs" / _plain(about["run"]) / label / f"seed-{int(about['seed'])}",
        identity="",
        federation=federation_,
        compute=Compute(device=config.device, threads=config.threads, precision=about["precision"]),
        new_network=functools.partial(_new_network, config, Architectures()),
        evaluate_every=0,
        counts_flops=bool(about["flops"]) and about["privacy"] is None,
        secure=None if about["secure"] is None else build_settings(SecureAggregation, about["secure"], "secure."),
        privacy=None if about["privacy"] is None else build_settings(Privacy, about["privacy"], "privacy."),
        client_privacy=None
        if about["noised"] is None
        else build_settings(ClientPrivacy, about["noised"], "client_privacy."),
    )


def _check_demands(config: SiteSettings, trial: Trial) -> None:
    """Refuses a trial that does not protect the site as its file demands, or not as the run says."""
    privacy = trial.privacy
    if trial.secure is not None:
        check_cryptography()
    if trial.client_privacy is not None:
        client_level.check_opacus()
    if config.privacy is not None and privacy is None:
        raise GenfedError("it takes part under [privacy] alone, since its file has a privacy budget")
    if privacy is not None:
        if config.privacy is not None and privacy.reproducible_noise:
            raise GenfedError("it takes no privacy.reproducible_noise: who knows the seed knows the noise")
        check_precision(trial.compute.precision)
        check_method(trial.label, trial.method)
    if config.minimum_group is not None and any(phase.aggregate for phase in flatten_phases(trial.method.phases())):
        if trial.secure is None:
            raise GenfedError(f"it uploads under [secure] alone, and {trial.label} would without masks")
        if trial.secure.minimum_group < config.minimum_group:
            raise GenfedError(
                f"secure.minimum_group = {trial.secure.minimum_group}: it needs sums of {config.minimum_group} uploads "
                "or more"
            )
        if trial.secure.neighbours is not None:
            raise GenfedError("secure.neighbours: on a ring no client can tell how large a sum is; leave it out")


def _check_network(config: SiteSettings, trial: Trial) -> None:
    """Refuses a trial under [privacy] for which the site's own classifier will not do."""
    if trial.privacy is not None:
        check_architecture(config.architecture, trial.shards.task, trial.new_network)


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
class _Closed(Foundation):
    """A foundation model that the site does not open; a method whose server alone opens it goes on."""

    site: str

    def load(self, task: Task, device: torch.device, precision: Literal["float32", "bfloat16"]) -> FoundationModel:
        raise GenfedError(
            f'site {self.site} opens no foundation.model but "shipped" and those that its SITE.toml names in allow'
        )


def _guarded(method: Method[Any], config: SiteSettings) -> Method[Any]:
    """The method, which opens no model that the site has not allowed.

    Raises:
        GenfedError: it has its clients open a captioner that is not.
    """
    given = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
    if given.get("captioner") not in (None, *config.allow):
        raise GenfedError(f"site {config.name} opens no captioner but those that its SITE.toml names in allow")
    closed = {
        name: _Closed(site=config.name, **vars(value))
        for name, value in given.items()
        if isinstance(value, Foundation) and value.model not in ("shipped", *config.allow)
    }
    return replace(method, **closed) if closed else method  # type: ignore[type-var]


def _plain(name: Any) -> str:
    """What may name a folder."""
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise GenfedError(f"{name!r} cannot name a folder")
    return name


def _free_memory() -> int:
    """Bytes that a process could still take; 0: not known."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _fields(upload: Packed) -> list[str]:
    return list(json.loads(upload.skeleton))
