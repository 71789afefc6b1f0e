"""SOLOv2 (arXiv 2003.10152) with the point prompts of PointWSSIS (arXiv 2303.15062)."""

from .heads import SOLOv2InsHead, SOLOv2MaskHead
from .prompts import PROMPTS, Prompt, get_prompt
from .solov2 import SOLOv2

__all__ = ["PROMPTS", "Prompt", "SOLOv2", "SOLOv2InsHead", "SOLOv2MaskHead", "get_prompt"]
