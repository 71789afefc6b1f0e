"""Utilities that every other subpackage may import: logging, events, processes, files, drawing."""
