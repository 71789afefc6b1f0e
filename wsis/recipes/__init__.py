"""Stages and published schedules of each method."""
