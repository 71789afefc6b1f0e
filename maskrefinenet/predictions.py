"""Read files of predictions, the reference's pickled ones among them."""

from collections.abc import Iterator
from pathlib import Path

from weaklabels.coco import Annotations
from weaklabels.records import Record, read_records, result_records

from .checkpoint import read_torch_file


def read_predictions(path: str | Path, annotations: Annotations | None = None) -> Iterator[Record]:
    """Yield the records of a prediction file, one image at a time.

    Args:
        path: `.jsonl` records, `.json` COCO results, or the reference's
            `instances_predictions.pth`.
        annotations: names the images of `.json` and `.pth` files.

    Raises:
        ValueError: naming the file and the record, where one of them is unusable.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".json", ".pth"):
        raise ValueError(f"{path}: expected a .jsonl, .json or .pth file of predictions")
    if path.suffix == ".pth":
        located = result_records(read_torch_file(path), path, annotations)
    else:
        located = read_records(path, annotations)
    for _, record in located:
        yield record
