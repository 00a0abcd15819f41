"""The two halves of a federation, as Flower finds them."""

from genfed.deployment.server import main
from genfed.deployment.site import handle
from genfed.engines.flower.client import client_app
from genfed.engines.flower.engine import server_app

server = server_app(main)
client = client_app(handle)
