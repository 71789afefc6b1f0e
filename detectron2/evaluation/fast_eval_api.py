"""COCO evaluation in C++, from faster-coco-eval, behind the interface of pycocotools' COCOeval."""

from typing import Any

from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["COCOeval_opt"]


class COCOeval_opt(COCOeval_faster):  # noqa: N801 (the name that users import)
    """The same figures as pycocotools' `COCOeval`, many times faster.

    Works on `pycocotools.coco.COCO` objects. After `evaluate()` and `accumulate()`, `eval` holds
    `precision`, `recall` and `scores` in pycocotools' shapes; there is no per-image `evalImgs`.
    """

    def __init__(
        self,
        cocoGt: COCO | None = None,  # noqa: N803 (pycocotools' argument names)
        cocoDt: COCO | None = None,  # noqa: N803
        iouType: str = "segm",  # noqa: N803
        **kwargs: Any,
    ) -> None:
        if cocoGt is not None and not hasattr(cocoGt, "cat_img_map"):
            # Needed for keypoints. All categories count, as in pycocotools.
            cocoGt.cat_img_map = {category: [] for category in cocoGt.getCatIds()}
        super().__init__(cocoGt, cocoDt, iouType, **kwargs)

    def summarize(self) -> None:
        """Print the twelve figures of pycocotools and keep them in `stats`.

        faster-coco-eval's own differ if `params` do: it takes the last limit of detections instead
        of 100, and leaves out figures that it cannot compute.
        """
        COCOeval.summarize(self)
