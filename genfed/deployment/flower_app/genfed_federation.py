"""The server's half of a federation, as Flower finds it."""

from genfed.deployment.server import main
from genfed.engines.flower.client import make_client_app, refuse_app
from genfed.engines.flower.engine import make_server_app

server = make_server_app(main)
# Flower wants one. A site that was started with `genfed join` never runs it.
client = make_client_app(refuse_app)
