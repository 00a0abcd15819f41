"""What is killed: every method, and every way in which clients are protected and reached, all of them tiny."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import tomli_w

from genfed.config import registry
from genfed.core.errors import GenfedError
from genfed.core.record import Packed, digest
from genfed.experiment.run_folder import RunFolder
from genfed.privacy.site_budget import BUDGET
from genfed.report.metrics_log import MACHINE
from genfed.report.results import TrialResult
from tests.conftest import TINY, start, tiny

LINEAR: dict[str, Any] = {"clients": 3, "architectures": ["linear"], "max_examples": 60}
NOISE: dict[str, Any] = {"noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp", "reproducible_noise": True}
EXAMPLES, CLIENTS = NOISE | {"kind": "dp_sgd"}, NOISE | {"kind": "dp_fedavg", "delta": 1e-2}


@dataclass(frozen=True)
class ChaosCase:
    """One kind of run."""

    name: str
    go_on: Callable[[Path], None]
    """Starts the run in a folder, or resumes it there."""
    varies: str = r"(?!)"
    """Pattern of files that differ between two whole runs: keys, or charges for rounds that a kill repeats."""

    def results(self, folder: Path) -> dict[str, Any]:
        """Returns what the run ended with, to the bit."""
        found: dict[str, Any] = {}
        for file in sorted(folder.rglob("*.safetensors")):
            name = re.sub(r"/runs/[0-9a-f]{16}/", "/runs/RUN/", str(file.relative_to(folder)))
            if not re.search(self.varies, name) and file.name != BUDGET:
                with safetensors.safe_open(file, "pt") as opened:
                    tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                    found[name] = digest(Packed(tensors, opened.metadata()["record"]))
        for file in sorted(folder.rglob("metrics.jsonl")):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            found[file.name] = [{k: v for k, v in row.items() if k not in MACHINE} for row in rows]
        for file in sorted(folder.rglob("report.json")):
            trials = RunFolder(file.parent).read_report().trials
            found[file.name] = [(trial.method, trial.accuracy, trial.worst, _own_failures(trial)) for trial in trials]
        found["leftovers"] = [str(file) for file in folder.rglob(".*.part")]
        return found


def _own_failures(trial: TrialResult) -> list[str]:
    """Returns the failures of a trial without the workers that were killed, which the report must list."""
    return [line for line in trial.failures if "a worker process died (killed by SIGKILL" not in line]


def all_cases() -> dict[str, ChaosCase]:
    """Returns every case by its name."""
    found = [_alone(name, tiny(name)) for name in _methods()]
    found += [
        _alone("gefl, measured", tiny("gefl", "local", metrics={"samples": 20, "epochs": 1}, federation=LINEAR)),
        _alone("fedavg, few participate", tiny("fedavg", "local", federation={"client_fraction": 0.5})),
        _alone("2 workers", tiny("gefl", "local", "fedavg", compute={"workers": 2})),
        _alone("2 workers, dp_sgd", tiny("fedavg", compute={"workers": 2}, federation=LINEAR, privacy=EXAMPLES)),
        _alone("dp_sgd", tiny("fedavg", "local", federation=LINEAR, privacy=EXAMPLES)),
        _alone("gefl, dp_sgd", _gefl(federation=LINEAR, privacy=EXAMPLES)),
        _alone("dp_fedavg", tiny("fedavg", federation=LINEAR, privacy=CLIENTS), "releases"),
        _alone(
            "dp_fedavg, adaptive", tiny("fedavg", federation=LINEAR, privacy=CLIENTS | {"adaptive": {}}), "releases"
        ),
        _alone("secure", tiny("fedavg", "fedprox", federation=LINEAR, secure_aggregation={}), "secure|index"),
        _alone(
            "secure, 2 workers",
            tiny("fedavg", federation=LINEAR, secure_aggregation={}, compute={"workers": 2}),
            "secure|index",
        ),
        _alone(
            "secure, dp_fedavg",
            tiny("fedavg", federation=LINEAR, secure_aggregation={}, privacy=CLIENTS),
            "secure|index|releases",
        ),
        ChaosCase("federation", partial(_serve, {}), r"opened|data\.saf"),
        ChaosCase("federation, dp_sgd", partial(_serve, {"privacy": EXAMPLES}), r"opened|data\.saf"),
        ChaosCase("federation, secure", partial(_serve, {"secure_aggregation": {}}), r"opened|data\.saf|secure|index"),
    ]
    return {case.name: case for case in found}


def _methods() -> list[str]:
    return sorted({*registry.list_classes(registry.METHODS), *TINY})


def _gefl(**changes: Any) -> dict[str, Any]:
    config = tiny("gefl", **changes)
    config["method"]["gefl"]["generator"] |= {"norm": "group"}
    return config


def _alone(name: str, config: dict[str, Any], varies: str = r"(?!)") -> ChaosCase:
    return ChaosCase(name, partial(_run, config), varies)


def _run(config: dict[str, Any], folder: Path) -> None:
    start(config, folder / "run", on_existing="resume")


def _serve(changes: dict[str, Any], folder: Path) -> None:
    """Serves a run to sites in this process: all of them are killed at once."""
    from flwr.supercore.task_identity import TaskIdentity

    from genfed.deployment import server
    from tests.deployment.test_sites import Grid, sites, some

    for name in ("_run_id", "_task_id", "_node_id"):
        setattr(TaskIdentity, name, 1)
    config = some("fedavg", "local", federation={"architectures": ["linear"]}, **changes)
    file, outcome = folder / "run.toml", folder / "outcome.json"
    if not file.exists():
        sites(config, folder / "sites")
        written = folder / "run.toml.new"
        written.write_text(tomli_w.dumps(config))
        written.rename(file)
    files = sorted((folder / "sites").glob("*.toml"))
    wanted = {"config": str(file), "out": str(folder / "run"), "outcome": str(outcome), "wait": 1.0}
    server.main(Grid(files), wanted | {"on_existing": "resume"})
    if error := json.loads(outcome.read_bytes())["error"]:
        raise GenfedError(error)


def go_on_and_exit(case: ChaosCase, folder: Path) -> None:
    """Starts or resumes a run in a forked process, which ends here: 0 if the run is done."""
    code = 1
    try:
        log = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        case.go_on(folder)
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)
