"""WeakSAM: detectors and instance segmenters from image tags."""
