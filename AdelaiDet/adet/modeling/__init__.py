"""Networks of adet; importing them registers the meta-architecture "SOLOv2"."""

from .solov2 import SOLOv2

__all__ = ["SOLOv2"]
