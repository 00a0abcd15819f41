"""On the path of Flower's processes in tests: who is silent is lost after 20 to 30 s, and not after 60. In the server's
an hour passes once a site sleeps (`tests.toys.Unruly`) and all others have answered, however long that takes.
"""

import os
import sys

if any("flower-" in word or "flwr-" in word or "deployment.answer" in word for word in sys.orig_argv[:3]):
    import flwr.supercore.heartbeat as beats

    beats.HEARTBEAT_DEFAULT_INTERVAL = 10  # how often they are sent
    if any("flower-supernode" in word for word in sys.orig_argv[:2]):
        import flwr.supercore.corestate.in_memory_corestate as processes
        import flwr.supernode.fleet_http_connection as node

        node.HEARTBEAT_DEFAULT_INTERVAL = 10  # what the node promises the link, the least that it may
        processes.HEARTBEAT_PATIENCE = 1  # promises of 30 s that a process may break before it is lost
    if any("flwr-serverapp" in word for word in sys.orig_argv[:3]):
        import time
        from pathlib import Path
        from types import SimpleNamespace
        from typing import Any

        import genfed.engines.flower.engine as engine

        ahead = 0.0

        def sleep(seconds: float) -> None:
            """Called by `MessageLink.send` while it waits for answers."""
            global ahead
            waited_for = sys._getframe(1).f_locals.get("in_flight", ())
            if len(waited_for) == 1 and not ahead and any(Path(os.environ["FLWR_HOME"]).parent.glob("*.asleep")):
                ahead = 3601.0
            time.sleep(seconds)

        clock: Any = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead, sleep=sleep)
        vars(engine)["time"] = clock
