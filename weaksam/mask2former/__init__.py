"""Mask2Former (Cheng et al., CVPR 2022): our ResNet under the parts that `transformers` has.

`transformers` belongs to the extra `[sam]` and is imported when a network is built.
"""

from weaksam.mask2former.config import add_mask2former_config
from weaksam.mask2former.mask_former import MaskFormer

__all__ = ["MaskFormer", "add_mask2former_config"]
