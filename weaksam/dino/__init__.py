"""DINO, the second detector that WeakSAM retrains; importing registers it."""

from weaksam.dino.detector import DINO

__all__ = ["DINO"]
