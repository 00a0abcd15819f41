"""The two halves of a federation, as Flower finds them."""

from genfed.app.own_site import handle
from genfed.app.serving import main
from genfed.engines.flower import client_app, server_app

server = server_app(main)
client = client_app(handle)
