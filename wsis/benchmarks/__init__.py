"""Timings of the networks, each against a baseline that runs beside it."""
