"""The two halves of a federation, as Flower finds them."""

from genfed.deployment.server import main
from genfed.deployment.site import handle
from genfed.engines.flower.client import make_client_app
from genfed.engines.flower.engine import make_server_app

server = make_server_app(main)
client = make_client_app(handle)
