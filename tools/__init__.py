"""Command-line tools; each runs as `python tools/NAME.py` and as `tools.NAME.main(argv)`."""
