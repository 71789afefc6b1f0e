"""The import path under which Detectron2 code finds `paste_masks_in_image`."""

from detectron2.structures.pasting import paste_masks_in_image

__all__ = ["paste_masks_in_image"]
