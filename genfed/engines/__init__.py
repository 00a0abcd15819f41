"""Engines move records between server and clients; they know no method."""
