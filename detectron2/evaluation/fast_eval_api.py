"""COCO evaluation in C++, from faster-coco-eval, behind the interface of pycocotools' COCOeval."""

from faster_coco_eval.core.faster_eval_api import COCOeval_faster

__all__ = ["COCOeval_opt"]


class COCOeval_opt(COCOeval_faster):  # noqa: N801 (the name that users import)
    """The same figures as pycocotools' `COCOeval`, many times faster.

    Works on `pycocotools.coco.COCO` objects. After `evaluate()` and `accumulate()`, `eval` holds
    `precision`, `recall` and `scores` in pycocotools' shapes; there is no per-image `evalImgs`.
    """
