"""Promptable segmenters behind one protocol; `spec.load_segmenter` gives one by its name."""
