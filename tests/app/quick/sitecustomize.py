"""On the path of Flower's processes in tests: who is silent is lost after 20 s, Flower's least, and not after 60."""

import sys

if any("flwr" in word or "flower" in word for word in sys.orig_argv[:2]):
    import flwr.common.constant

    flwr.common.constant.HEARTBEAT_DEFAULT_INTERVAL = flwr.common.constant.HEARTBEAT_MIN_INTERVAL
