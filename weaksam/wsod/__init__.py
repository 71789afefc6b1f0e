"""Weakly supervised detection: which proposals are the objects, learned from image tags."""

from weaksam.wsod.box_head import DropoutFCHead
from weaksam.wsod.heads import MILHeads
from weaksam.wsod.weak_rcnn import WeakRCNN

__all__ = ["DropoutFCHead", "MILHeads", "WeakRCNN"]
