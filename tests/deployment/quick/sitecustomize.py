"""On the path of Flower's processes in tests: who is silent is lost after 20 to 30 s, and not after 60."""

import sys

if any("flower-" in word or "flwr-" in word or "deployment.answer" in word for word in sys.orig_argv[:3]):
    import flwr.supercore.heartbeat as beats

    beats.HEARTBEAT_DEFAULT_INTERVAL = 10  # how often they are sent
    if any("flower-supernode" in word for word in sys.orig_argv[:2]):
        import flwr.supercore.corestate.in_memory_corestate as processes
        import flwr.supernode.fleet_http_connection as node

        node.HEARTBEAT_DEFAULT_INTERVAL = 10  # what the node promises the link, the least that it may
        processes.HEARTBEAT_PATIENCE = 1  # promises of 30 s that a process may break before it is lost
