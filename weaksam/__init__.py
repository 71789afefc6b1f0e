"""WeakSAM: detectors and instance segmenters from image tags, by way of promptable segmenters."""
