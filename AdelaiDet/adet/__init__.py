"""SOLOv2 with point prompts, on the detectron2 package of this repository.

Importing adet registers its meta-architectures, so that `build_model` finds them.
"""

from . import modeling

__all__ = ["modeling"]
