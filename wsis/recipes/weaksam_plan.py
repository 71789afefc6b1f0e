"""What decides a run of WeakSAM: the datasets, the networks with published schedules, the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsis.recipes.plan import tuple_text
from wsis.recipes.segmenters import segmenter_file_of
from wsis.runner import FlagValue, Machines

DETECTORS = {  # by the name of the head; {} is the dataset
    "mist": "configs/WeakSAM/{}_mist.yaml",
    "oicr": "configs/WeakSAM/{}_oicr.yaml",
}
SEGMENTER = "segment_anything:vit_h:sam_vit_h_4b8939.pth"  # the paper's
PROPOSALS = ("points", "selective_search")
# Groups of stages, which --until and --from may name.
STAGES = (
    *("classifier", "points", "proposals", "wsod"),
    *("pseudo_boxes", "retrain", "masks", "segmenter"),
)
# The classifier that the paper took for VOC and COCO, with the published schedule of its training.
CLASSIFIER = {"network": "weaktr"}
POINT_SOURCES = {"weaktr": ("coarse", "fine", "cross"), "cam": ("coarse",)}
# What learns from pseudo labels, by kind and dataset.
RETRAINED = {
    "faster_rcnn": {
        "voc07": "configs/WeakSAM/voc07_faster_rcnn.yaml",
        "voc12": "configs/WeakSAM/voc12_faster_rcnn.yaml",
        "coco14": "configs/WeakSAM/coco14_faster_rcnn.yaml",
    },
    "dino": {
        "voc07": "configs/WeakSAM/dino_voc07.yaml",
        "voc12": "configs/WeakSAM/dino_voc12.yaml",
        "coco14": "configs/WeakSAM/dino_coco.yaml",
    },
}
SEGMENTERS = {
    "mask_rcnn": {
        "voc12": "configs/WeakSAM/voc12_mask_rcnn.yaml",
        "coco14": "configs/WeakSAM/coco_mask_rcnn.yaml",
    },
    "mask2former": {
        "voc12": "configs/WeakSAM/mask2former_voc12.yaml",
        "coco14": "configs/WeakSAM/mask2former_coco.yaml",
    },
}
NOTHING = "none"  # in place of a network: the run has no such stage
ENDS = {  # what the whole run of a dataset trains after the weak detector: detector, segmenter
    "voc07": ("faster_rcnn", NOTHING),
    "voc12": (NOTHING, "mask_rcnn"),
    "coco14": ("faster_rcnn", "mask_rcnn"),
    "own": ("faster_rcnn", NOTHING),
}
# Whose boxes are turned into masks: the weak detector's, as in the reference, or the retrained
# one's, each by the rule of the pseudo boxes.
BOX_SOURCES = ("wsod", "retrain")


@dataclass(frozen=True)
class Split:
    """Images of one part of a dataset.

    images: their folder.  tags: flags of `wsis tags` that read which classes they show.
    truth: flags of commands that measure, and where true boxes are.
    """

    images: Path
    tags: Mapping[str, FlagValue]
    truth: Mapping[str, FlagValue]


@dataclass(frozen=True)
class MaskTest:
    """True masks that segmenters are measured on.

    name: what DATASETS.TEST says.  reads: what has to be there, by what to do where it is not.
    voc, split: the list of ImageSets/Segmentation whose masks are first made into `truth`.
    left_out: a list of training images that the segmenter does not learn from: it is measured on
        them.
    config: of the evaluation.
    released_images: training images of the released masks, where they are others.
    """

    name: str
    reads: Mapping[Path, str]
    voc: Path | None = None
    split: str = ""
    left_out: Path | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    released_images: Path | None = None


@dataclass(frozen=True)
class WeakSource:
    """Where a dataset lies.

    test_name: what DATASETS.TEST says for the test images and their truth.
    reads: files and folders that have to be there.  how_to_get: what to do where they are not.
    difficult: whether the source marks objects as difficult, which only the classifier learns from.
    masks: None where no masks are measured.
    """

    name: str
    train: Split
    test: Split
    test_name: str
    reads: tuple[Path, ...]
    how_to_get: str
    difficult: bool = False
    masks: MaskTest | None = None


def voc(datasets: Path, year: int, test_split: str) -> WeakSource:
    """Pascal VOC below the folder `datasets`; its detectors train on trainval."""
    folder = datasets / f"VOC{year}"

    def split(name: str) -> Split:
        flags = {"voc": folder, "split": name}
        return Split(folder / "JPEGImages", flags, flags)

    return WeakSource(
        name=f"voc{year % 100:02}",
        train=split("trainval"),
        test=split(test_split),
        test_name=f"voc_{year}_{test_split}",
        reads=(folder / "JPEGImages", folder / "Annotations"),
        how_to_get=f"download VOC {year} (trainval{', test' if test_split == 'test' else ''}) from "
        f"host.robots.ox.ac.uk/pascal/VOC and unpack it, so that {folder} holds JPEGImages, "
        "Annotations and ImageSets, or point DETECTRON2_DATASETS at the parent of that folder",
        difficult=True,
    )


def voc12(datasets: Path) -> WeakSource:
    """VOC 2012: the boxes of test are not public, and its val is a part of trainval.

    Masks are measured on the val of segmentation, whose images the segmenter does not learn from.
    """
    source, folder = voc(datasets, 2012, "val"), datasets / "VOC2012"
    missing = (
        f"it comes with VOC 2012 (trainval): unpack all of it, so that {folder} holds "
        "SegmentationObject, SegmentationClass and ImageSets/Segmentation"
    )
    listed = folder / "ImageSets" / "Segmentation" / "val.txt"
    masks = MaskTest(
        name="",
        reads=dict.fromkeys((listed, folder / "SegmentationObject"), missing),
        voc=folder,
        split="val",
        left_out=listed,
        config={"TEST.EXTRA_IOU_THRESHOLDS": "(0.25,0.7)"},
    )
    return replace(source, masks=masks)


def coco14(datasets: Path) -> WeakSource:
    """COCO 2014 below the folder `datasets`: train, measured on val; masks on 2017's val."""
    folder = datasets / "coco"

    def split(name: str) -> Split:
        annotations = folder / "annotations" / f"instances_{name}2014.json"
        flags = {"coco": annotations, "split": f"{name}2014"}
        return Split(folder / f"{name}2014", flags, {"annotations": annotations})

    return WeakSource(
        name="coco14",
        train=split("train"),
        test=split("val"),
        test_name="coco_2014_val",
        reads=(folder / "train2014", folder / "val2014"),
        how_to_get="download COCO 2014 (train2014, val2014, annotations) from cocodataset.org and "
        f"unpack it into {folder}, or point DETECTRON2_DATASETS at its parent folder",
        masks=MaskTest(
            "coco_2017_val",
            dict.fromkeys(
                (folder / "val2017", folder / "annotations" / "instances_val2017.json"),
                "masks are measured on COCO 2017's val, whose images are in no 2014 training set: "
                f"download it from cocodataset.org and unpack it into {folder}",
            ),
            released_images=folder / "train2017",
        ),
    )


def own_data(train_json: Path, train_root: Path, val_json: Path, val_root: Path) -> WeakSource:
    """Two COCO-format files; only the tags of the first one are learned from."""
    parts = [
        Split(root, {"coco": file, "split": split}, {"annotations": file})
        for file, root, split in ((train_json, train_root, "train"), (val_json, val_root, "val"))
    ]
    return WeakSource(
        name="own",
        train=parts[0],
        test=parts[1],
        test_name=f"{val_json.stem}_boxes={val_json}:{val_root}",
        reads=(train_json, train_root, val_json, val_root),
        how_to_get="give --train-json, --image-root, --val-json and --val-root",
        masks=MaskTest(f"{val_json.stem}_masks={val_json}:{val_root}", {val_json: "give it"}),
    )


WEAK_SOURCES = {
    "voc07": lambda datasets: voc(datasets, 2007, "test"),
    "voc12": voc12,
    "coco14": coco14,
}


def classifier_file(output: Path) -> Path:
    """Where the classifier of a run is."""
    return output / "classifier" / "classifier.pth"


@dataclass(frozen=True)
class Network:
    """A network that is trained: its config, and overrides of that."""

    config: str
    overrides: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WeakPlan:
    """All that decides the stages of one run.

    config: of the weak detector.  overrides: of its configuration, by the user.
    classifier: flags of its training; `network` decides which points there are.
    points: flags of the search for them.
    proposals: kind of PROPOSALS.  proposal_flags: of their command, such as the segmenter.
    pseudo_boxes: flags of the command that chooses them.
    retrain, segmenter: what learns from pseudo boxes, and from their masks; None: no such stage.
    masks: flags of the command that makes them.  mask_boxes: of whose boxes, one of BOX_SOURCES.
    released: files of WeakSAM's authors in place of own ones: proposals of "train" and "test",
        "masks".
    until: the last group of stages, one of STAGES.
    """

    source: WeakSource
    output: Path
    machines: Machines
    config: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    classifier: Mapping[str, FlagValue] = field(default_factory=lambda: CLASSIFIER)
    classifier_config: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[str, FlagValue] = field(default_factory=dict)
    proposals: str = "points"
    proposal_flags: Mapping[str, FlagValue] = field(
        default_factory=lambda: {"segmenter": SEGMENTER}
    )
    pseudo_boxes: Mapping[str, FlagValue] = field(default_factory=dict)
    retrain: Network | None = None
    segmenter: Network | None = None
    masks: Mapping[str, FlagValue] = field(default_factory=lambda: {"segmenter": SEGMENTER})
    mask_boxes: str = BOX_SOURCES[0]
    released: Mapping[str, Path] = field(default_factory=dict)
    until: str = STAGES[-1]

    @property
    def detector(self) -> Network:
        """The weak detector."""
        return Network(self.config, self.overrides)

    @property
    def point_sources(self) -> tuple[str, ...]:
        kind = "weaktr" if self.classifier["network"] == "weaktr" else "cam"
        return POINT_SOURCES[kind]

    @property
    def weights(self) -> Path:
        """The classifier."""
        return classifier_file(self.output)

    @property
    def segmenter_file(self) -> Path | None:
        """The file of the segmenter that makes proposals, where it has one."""
        return segmenter_file_of(self.proposal_flags) if self.proposals == PROPOSALS[0] else None

    def tags(self, part: str) -> Path:
        """Tag file of "train" or "test", or of "clues": train with classes of difficult objects."""
        return self.output / f"tags_{part}.json"

    def proposal_file(self, part: str, kind: str | None = None) -> Path:
        """Proposals of "train" or "test"."""
        return self.output / f"proposals_{part}_{kind or self.proposals}.npz"

    def inline(self, part: str) -> str:
        """What DATASETS.TRAIN or TEST say for the tagged images of a part."""
        split = getattr(self.source, part)
        name = f"{self.output.name}_{self.source.name}_{part}_tags"
        return f"{name}={self.tags(part).absolute()}:{split.images}"


def datasets(train: str, train_proposals: Path, test: str, test_proposals: Path) -> dict[str, str]:
    """The keys that name images and proposals; "" names none."""
    named = {
        "TRAIN": (train, "PROPOSAL_FILES_TRAIN", train_proposals),
        "TEST": (test, "PROPOSAL_FILES_TEST", test_proposals),
    }
    keys = {}
    for split, (name, proposals_key, proposals) in named.items():
        keys[f"DATASETS.{split}"] = tuple_text([name] if name else [])
        keys[f"DATASETS.{proposals_key}"] = tuple_text([str(proposals)] if name else [])
    return keys
