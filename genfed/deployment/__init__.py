"""A federation across machines: the server, sites, certificates, Flower's programs."""
