"""Sums of uploads under masks, so that the server sees no single one."""
