"""Kills runs at random system calls, resumes them, and compares what they end with with a run that was not killed:
`python -m tests.chaos`. It needs strace.

Each kill is SIGKILL at one call of one process, chosen among all calls by which the whole run changed something: files,
sockets, locks. Both the process that runs the trials and worker processes are killed. For each difference a line is
printed that says how to repeat it.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.chaos.cases import ChaosCase, all_cases, go_on_and_exit

CALLS = (
    "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,"
    "truncate,flock,sendto,sendmsg"
)
"""System calls at which runs are killed: those that change something outside the process."""
LIMIT = 300.0
"""Seconds for one run."""
PATIENCE = 20.0
"""Seconds in which strace ends."""
TRIES = 3
"""Number of resumes after which a run must be done."""


@dataclass(frozen=True)
class Moment:
    """The system call at which a process is killed."""

    call: str
    number: int
    """Number of this call among those of its kind in its process, from 1."""

    def __str__(self) -> str:
        return f"{self.call}:{self.number}"


@dataclass
class Reference:
    """A run that was not killed."""

    case: ChaosCase
    results: dict[str, Any]
    moments: list[Moment]
    """All calls that its processes made."""


@dataclass
class Tally:
    """What was done so far."""

    killed: Counter[str] = field(default_factory=Counter)
    """Kills by case."""
    missed: int = 0
    """Runs that had ended before their moment came, since no two runs make quite the same calls."""
    failures: list[str] = field(default_factory=list)


def run_once(case: ChaosCase, folder: Path, options: list[str] | None = None) -> int:
    """Starts or resumes a run in a process of its own, under strace with these options. None: without it. Returns its
    exit status, negative where a signal ended it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        if options is not None:
            os.kill(os.getpid(), signal.SIGSTOP)
        go_on_and_exit(case, folder)
    tracer = None
    if options is not None:
        os.waitpid(child, os.WUNTRACED)
        tracer = subprocess.Popen(["strace", "-f", "-qqq", "-p", str(child), *options], stderr=subprocess.DEVNULL)
        while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text() and tracer.poll() is None:
            time.sleep(0.001)
        os.kill(child, signal.SIGCONT)
    status = _await(child)
    if tracer is not None:
        _end(tracer)
    return status


def _end(tracer: subprocess.Popen[bytes]) -> None:
    """Ends strace. It may wait for a process of which a thread waits for it: then it is killed, and lets both go."""
    tracer.terminate()
    try:
        tracer.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait()


def _await(child: int) -> int:
    ends = time.monotonic() + LIMIT
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def record(case: ChaosCase, folder: Path) -> Reference:
    """Runs a case without a kill, and notes its system calls. First runs it in this process, from which all others are
    forked: so they import nothing.
    """
    (folder.parent / "warm").mkdir(parents=True)
    case.go_on(folder.parent / "warm")
    shutil.rmtree(folder.parent / "warm")
    log = folder.with_suffix(".calls")
    status = run_once(case, folder, ["-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log)])
    if status:
        raise SystemExit(f"{case.name} does not run ({status}): {(folder / 'output.log').read_text()[-500:]}")
    seen, moments = Counter[tuple[str, str]](), []
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r"(\d+) +(\w+)\(", line):
            seen[match[1], match[2]] += 1
            moments.append(Moment(match[2], seen[match[1], match[2]]))
    return Reference(case, case.results(folder), moments)


def kill_and_compare(reference: Reference, moment: Moment, folder: Path) -> tuple[bool, str]:
    """Kills a run, resumes it until it is done, and compares. Returns whether it was killed, and what is wrong with it.
    Empty: nothing.
    """
    case = reference.case
    inject = f"inject={moment.call}:signal=KILL:when={moment.number}"
    status = run_once(case, folder, ["-e", f"trace={moment.call}", "-e", inject, "-o", str(folder) + ".calls"])
    killed = "killed by SIGKILL" in Path(str(folder) + ".calls").read_text(errors="replace")
    for _ in range(TRIES):
        if status == 0:
            break
        status = run_once(case, folder)
    if status:
        return killed, f"status {status}: {(folder / 'output.log').read_text()[-300:].splitlines()[-1]}"
    results = case.results(folder)
    names = sorted(results.keys() | reference.results.keys())
    other = [name for name in names if results.get(name) != reference.results.get(name)]
    return killed, f"it ends otherwise: {', '.join(other)}" if other else ""


def chaos(kills: int, seed: int, chosen: list[ChaosCase], replay: Moment | None, keep: Path) -> Tally:
    """Kills runs of the chosen cases in turn."""
    draws, tally, references = random.Random(seed), Tally(), dict[str, Reference]()
    order = draws.sample(chosen, len(chosen))
    for number in range(4 * kills):
        if sum(tally.killed.values()) >= kills:
            break
        case = order[number % len(order)]
        place = keep / re.sub(r"\W+", "-", case.name)
        if case.name not in references:
            references[case.name] = record(case, place / "whole")
        moment = replay or draws.choice(references[case.name].moments)
        folder = place / str(moment).replace(":", "-")
        shutil.rmtree(folder, ignore_errors=True)
        killed, wrong = kill_and_compare(references[case.name], moment, folder)
        tally.killed[case.name] += killed
        tally.missed += not killed
        again = f"python -m tests.chaos --case {case.name!r} --at {moment}"
        count, missed = sum(tally.killed.values()), "" if killed else " (missed)"
        say(f"{count:4} {case.name}, {moment}{missed}: {wrong or 'identical'}")
        if wrong:
            tally.failures.append(f"{case.name} killed at {moment} (seed {seed}): {wrong}; again: {again}")
        else:
            shutil.rmtree(folder)
        if replay is not None:
            break
    return tally


def say(line: str) -> None:
    """Shows a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Reads the command line, kills, and says what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments; another seed draws others")
    parser.add_argument("--case", action="append", help="name of a case; all of them if it is not given")
    parser.add_argument("--at", help="CALL:NUMBER, to repeat one kill of one case")
    given = parser.parse_args()
    if shutil.which("strace") is None:
        raise SystemExit("make chaos needs strace (Debian: apt-get install strace)")
    torch.set_num_threads(1)
    cases = all_cases()
    if unknown := set(given.case or ()) - cases.keys():
        raise SystemExit(f"no case {min(unknown)!r}; there are: {', '.join(cases)}")
    chosen = [cases[name] for name in given.case or cases]
    replay = None
    if given.at:
        call, _, number = given.at.partition(":")
        replay = Moment(call, int(number))
    keep, started = Path(tempfile.mkdtemp(prefix="genfed-chaos-")), time.monotonic()
    tally = chaos(given.kills, given.seed, chosen, replay, keep)
    for line in tally.failures:
        say(f"FAILED {line}")
    kills = sum(tally.killed.values())
    say(
        f"{kills} kills of {len(tally.killed)} cases, seed {given.seed}: {len(tally.failures)} failed; {tally.missed} "
        f"runs had ended before their moment; {time.monotonic() - started:.0f} s"
    )
    if tally.failures:
        raise SystemExit(f"the folders of those that failed are in {keep}")
    shutil.rmtree(keep)


main()
