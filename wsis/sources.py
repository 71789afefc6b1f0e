"""The datasets that recipes know: where their files lie and what their subsets are called."""

from dataclasses import dataclass
from pathlib import Path

BDD100K_IMAGES = 7000  # of the training part of its 10,000 images with instance labels


@dataclass(frozen=True)
class DataSource:
    """Where one dataset lies and how its files are called.

    subset_json, train_name: with `{subset}` ("10p") and `{kind}` ("s", "w", ...) to be filled in.
    train_name: what DATASETS.TRAIN names, a registered name or `name=json:root`.
    num_classes: None where the annotation file decides.
    how_to_get: what the user reads where a file is missing.
    train_images: number of training images; None where the annotation file decides.
    is_reference: whether the published schedules are for this dataset.
    """

    train_json: Path
    image_root: Path
    subset_json: str
    train_name: str
    test_name: str
    val_json: Path
    num_classes: int | None
    how_to_get: str
    train_images: int | None = None
    is_reference: bool = False

    def path(self, subset: str, kind: str) -> Path:
        """The label file of a subset."""
        return Path(self.subset_json.format(subset=subset, kind=kind))

    def name(self, subset: str, kind: str) -> str:
        """What DATASETS.TRAIN says for a subset."""
        return self.train_name.format(subset=subset, kind=kind)


def coco(datasets: Path) -> DataSource:
    """COCO 2017 below the folder `datasets`."""
    annotations = datasets / "coco" / "annotations"
    return DataSource(
        train_json=annotations / "instances_train2017.json",
        image_root=datasets / "coco" / "train2017",
        subset_json=str(annotations / "instances_train2017_{subset}_{kind}.json"),
        train_name="coco_2017_train_{subset}_{kind}",
        test_name="coco_2017_val",
        val_json=annotations / "instances_val2017.json",
        num_classes=80,
        how_to_get="download COCO 2017 (train2017, val2017, annotations) from cocodataset.org and "
        f"unpack it into {datasets / 'coco'}, or point DETECTRON2_DATASETS at its parent folder",
        is_reference=True,
    )


def bdd100k(datasets: Path) -> DataSource:
    """BDD100K's 10,000 images with instance labels below the folder `datasets`."""
    annotations = datasets / "BDD100K" / "annotations"
    return DataSource(
        train_json=annotations / "bdd100k_ins_labels_train.json",
        image_root=datasets / "BDD100K" / "train",
        subset_json=str(annotations / "bdd100k_ins_labels_train_{subset}_{kind}.json"),
        train_name="bdd100k_train_{subset}_{kind}",
        test_name="bdd100k_val",
        val_json=annotations / "bdd100k_ins_labels_val.json",
        num_classes=8,
        how_to_get="download the BDD100K 10k images and instance labels, then run "
        "tools/convert_bdd100k.py (README, section BDD100K)",
        train_images=BDD100K_IMAGES,
    )


def own_data(
    train_json: Path,
    image_root: Path,
    val_json: Path,
    val_root: Path,
    subset_folder: Path | None = None,
) -> DataSource:
    """Any pair of COCO-format files; subset files go to their folder, or beside `train_json`."""
    stem = train_json.stem
    subset_json = f"{subset_folder or train_json.parent}/{stem}_{{subset}}_{{kind}}.json"
    return DataSource(
        train_json=train_json,
        image_root=image_root,
        subset_json=subset_json,
        train_name=f"{stem}_{{subset}}_{{kind}}={subset_json}:{image_root}",
        test_name=f"{val_json.stem}={val_json}:{val_root}",
        val_json=val_json,
        num_classes=None,
        how_to_get="give --train-json, --image-root, --val-json and --val-root as docs/own_data.md"
        " says",
    )


# Datasets with a place of their own below the folder DETECTRON2_DATASETS.
DATA_SOURCES = {"coco": coco, "bdd100k": bdd100k}
