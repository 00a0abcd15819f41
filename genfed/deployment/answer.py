"""Answers one message that a site's node received: `python -m genfed.deployment.answer ADDRESS SITE.toml`, with the
message's token as standard input. `genfed join` starts this process for every message.
"""

import sys

from genfed.deployment.site import handle
from genfed.engines.flower.tasks import answer_task

if __name__ == "__main__":
    address, site = sys.argv[1:]
    answer_task(address, sys.stdin.readline().strip(), lambda head, body, node: handle(head, body, {"site": site}))
