"""All clients in this process, one after another."""

import logging
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace

from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError, StorageError, describe_error
from genfed.core.files import keep_directory
from genfed.core.record import Packed
from genfed.engines.client_runner import ClientRunner
from genfed.engines.messages import PackedReply, RoundId
from genfed.engines.round import Failure, Job

log = logging.getLogger(__name__)


def attempt_work(runner: ClientRunner, step: RoundId, client: int, sent: Packed) -> PackedReply | Failure:
    """Has one client do its part of a round. Returns its reply, or why there is none.

    Raises:
        KeyboardInterrupt: the run is to stop.
    """
    try:
        with keep_directory():
            return runner.work(step, client, sent)
    except KeyboardInterrupt:
        raise
    except GenfedError as error:
        return Failure(str(error), fatal=isinstance(error, StorageError))
    except BaseException as error:  # a client's own code may fail in any way, also by SystemExit; the others go on
        log.warning("client %d failed in %s round %d\n%s", client, step.phase, step.round, traceback.format_exc())
        return Failure(describe_error(error))


class InProcess:
    """The engine that has clients work in this process."""

    def __init__(self, runner: ClientRunner) -> None:
        self._runner = runner

    def exchange(self, step: RoundId, jobs: Iterable[Job]) -> Iterator[tuple[ClientInfo, PackedReply | Failure]]:
        """See `Engine`."""
        for info, sent, since in jobs:
            # A copy, so that a client that works in place cannot reach the server's state.
            own = Packed({name: tensor.clone() for name, tensor in sent.tensors.items()}, sent.skeleton)
            yield info, attempt_work(self._runner, replace(step, since=since), info.id, own)

    def describe(self, info: ClientInfo, reason: str) -> str:
        """See `Engine`."""
        return reason

    def lost(self) -> list[str]:
        """See `Engine`: there is no worker to lose."""
        return []
