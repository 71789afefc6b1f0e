"""Evaluate a released (or own) checkpoint or pseudo-label file beside the reported figure.

The reported figures are the student's mask AP on test-dev, whose annotations are not public: there
the file that the evaluation server takes is written, and nothing is measured.
"""

import json
import math
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.inline import register_inline_datasets
from detectron2.evaluation.coco_evaluation import RESULTS_FILE
from detectron2.modeling import meta_architecture
from weaklabels.files import atomic_bytes, atomic_text, read_json, write_json
from wsis.config import load_config
from wsis.launcher import Job, launch
from wsis.released import CONFIGS, read_releases, released_path, verify
from wsis.reproduce_labels import Refinement, judge_labels, label_files, refine_and_judge
from wsis.trained_model import load_trained
from wsis.training import PROMPTED_TASK, Trainer, TrainingSettings, prepared

STAGES = ("teacher", "maskrefinenet", "pseudo_labels", "student")
LABEL_STAGES = ("pseudo_labels", "maskrefinenet")  # judged on train2017, not on a --split
SPLITS = {"val2017": "coco_2017_val", "test-dev": "coco_2017_test-dev"}
PROMPTS = {"teacher": ("none", "point"), "student": ("none",)}  # of the evaluations of a stage
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SERVER_KEYS = ("image_id", "category_id", "segmentation", "score")
SERVER_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# Keys that a flag decides.
FLAG_OF_KEY = {
    "MODEL.WEIGHTS": "--weights",
    "MODEL.SOLOV2.PROMPT": "--stage",
    "OUTPUT_DIR": "--output",
}
HOW_TO_GET = {
    "val2017": "http://images.cocodataset.org/zips/val2017.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "test-dev": "http://images.cocodataset.org/zips/test2017.zip and "
    "http://images.cocodataset.org/annotations/image_info_test2017.zip",
}


@dataclass(frozen=True)
class ReproduceSettings:
    """What to evaluate, and where.

    stage: one of STAGES.  split: one of SPLITS.
    weights: an own file in place of the released one; for pseudo_labels a merged COCO file or
        records.
    config_file: of an own checkpoint (maskrefinenet: of the teacher); None: the released ones'.
    annotations: for LABEL_STAGES, all masks of train2017.  weak_annotations: the weak images.
    teacher, records, image_root: for maskrefinenet, an own teacher, or records of one, in place of
        the released one; the folder of the images, None: COCO's train2017.
    name: in the name of the server's file; None: PointWSSIS-SUBSET-STAGE.
    output: None: output/reproduce/SUBSET_STAGE_SPLIT.
    """

    subset: str
    stage: str
    split: str = "val2017"
    weights: Path | None = None
    checkpoints: Path = Path("checkpoints")
    config_file: str | None = None
    annotations: Path | None = None
    weak_annotations: Path | None = None
    teacher: Path | None = None
    records: Path | None = None
    image_root: Path | None = None
    name: str | None = None
    output: Path | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in self.overrides[::2]:
            if key in FLAG_OF_KEY:
                raise ValueError(f"{key} is decided by {FLAG_OF_KEY[key]}")
        if self.stage in LABEL_STAGES and self.split != "val2017":
            raise ValueError("pseudo labels are those of train2017: --split does not apply")
        if self.stage == "pseudo_labels" and (self.overrides or self.config_file):
            raise ValueError("--stage pseudo_labels runs no network: no --config-file or KEY VALUE")
        if self.stage not in LABEL_STAGES and (self.annotations or self.weak_annotations):
            raise ValueError(
                f"--annotations and --weak-annotations are for --stage {' and '.join(LABEL_STAGES)}"
            )
        if self.stage != "maskrefinenet" and (self.teacher or self.records or self.image_root):
            raise ValueError("--teacher, --records and --image-root are for --stage maskrefinenet")
        if self.records and (self.teacher or self.config_file or self.overrides):
            raise ValueError("--records are there: no teacher, --config-file or KEY VALUE is used")
        if self.records and self.records.suffix != ".jsonl":
            raise ValueError(f"--records {self.records}: expected prediction records, .jsonl")
        if self.name and self.split != "test-dev":
            raise ValueError("--name is for --split test-dev")
        if not SERVER_NAME.fullmatch(self.server_name):
            raise ValueError(f"--name {self.name!r}: letters, digits, '_', '-' and '.' are allowed")

    @property
    def server_name(self) -> str:
        return self.name or f"PointWSSIS-{self.subset}-{self.stage}"

    @property
    def folder(self) -> Path:
        """Where results go."""
        split = "train2017" if self.stage in LABEL_STAGES else self.split
        return self.output or Path("output", "reproduce", f"{self.subset}_{self.stage}_{split}")


def reproduce(settings: ReproduceSettings, job: Job) -> list[dict[str, Any]] | None:
    """Evaluate and write `reproduce.json`; the rows of the table, None on other machines."""
    weights = checkpoint_path(settings, settings.stage, settings.weights, "--weights")
    if settings.stage not in LABEL_STAGES:
        rows = run_network(settings, weights, job)
    else:
        labels = label_files(settings.subset, settings.annotations, settings.weak_annotations)
        if settings.stage == "pseudo_labels":
            rows = judge_labels(weights, labels, settings.folder / "quality.json", "pseudo labels")
        else:
            rows = refine_and_judge(refinement(settings, weights), labels, settings.folder, job)
    if rows is not None:
        write_json(settings.folder / "reproduce.json", rows)
    return rows


def checkpoint_path(settings: ReproduceSettings, kind: str, own: Path | None, flag: str) -> Path:
    """The file to use: the own one, or the released one after a look at what it holds."""
    if own:
        if not own.exists():
            raise FileNotFoundError(f"{flag} {own}: no such file")
        return own
    path = released_path(settings.checkpoints, settings.subset, kind)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; download it with\n  wsis download "
            f"--subset {settings.subset} --what {kind} --output {settings.checkpoints}\n"
            f"or give a file of your own with {flag}"
        )
    print(f"{path}: {verify(path, kind)}")
    return path


def refinement(settings: ReproduceSettings, refiner: Path) -> Refinement:
    """What `--stage maskrefinenet` refines, and with what."""
    teacher = None
    if settings.records is None:
        teacher = checkpoint_path(settings, "teacher", settings.teacher, "--teacher")
    return Refinement(
        refiner=refiner,
        teacher=teacher,
        records=settings.records,
        image_root=settings.image_root or Path(MetadataCatalog.get("coco_2017_train").image_root),
        config_file=settings.config_file or CONFIGS["teacher"],
        overrides=settings.overrides,
    )


def training_settings(
    settings: ReproduceSettings, weights: Path, prompt: str, job: Job
) -> TrainingSettings:
    """How these weights are evaluated with this prompt."""
    decided = {
        "MODEL.WEIGHTS": str(weights),
        "MODEL.SOLOV2.PROMPT": prompt,
        "OUTPUT_DIR": str(settings.folder / f"prompt_{prompt}"),
        "DATASETS.TRAIN": "()",  # an evaluation does not need the data that a config names
        "DATASETS.TEST": f"('{SPLITS[settings.split]}',)",
    }
    pairs = [word for pair in decided.items() for word in pair]
    return TrainingSettings(
        config_file=settings.config_file or CONFIGS[settings.stage],
        overrides=(*pairs, *settings.overrides),
        eval_only=True,
        num_gpus=job.num_gpus,
    )


def test_dataset(settings: TrainingSettings, split: str) -> str:
    """Name of the one dataset of DATASETS.TEST, whose files are there."""
    cfg = load_config(settings.config_file, settings.overrides, num_gpus=settings.num_gpus)
    names = register_inline_datasets(cfg.DATASETS.TEST)
    if len(names) != 1 or names[0] not in DatasetCatalog:
        raise ValueError(f"DATASETS.TEST={tuple(names)}; one registered name or name=json:folder")
    metadata = MetadataCatalog.get(names[0])
    for path in (metadata.json_file, metadata.image_root):
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{path} of {names[0]} is missing: unpack {HOW_TO_GET[split]} into the folder "
                "coco below the one in the environment variable DETECTRON2_DATASETS"
            )
    return names[0]


def evaluate(settings: TrainingSettings) -> dict[str, Any]:
    """Evaluate in this process of a job: the mode, and the figures where there are any."""
    with prepared(settings) as cfg:
        results = Trainer.test(cfg, load_trained(cfg))
    figures = results.get("segm", results.get(f"{PROMPTED_TASK}segm"))
    plain = f"detector AP: prompt={cfg.MODEL.SOLOV2.PROMPT}, scores of the network"
    return {
        "mode": meta_architecture(cfg).evaluation_mode(cfg) or plain,
        "figures": without_nan(figures),
    }


def without_nan(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """Figures with None where nothing was measured; None for a dataset without annotations."""
    if figures is None:
        return None
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def run_network(
    settings: ReproduceSettings, weights: Path, job: Job
) -> list[dict[str, Any]] | None:
    """Evaluate with each prompt of the stage, or write the file for the server; table rows."""
    prompts = PROMPTS[settings.stage] if settings.split == "val2017" else ("none",)
    rows = []
    for prompt in prompts:
        evaluation = training_settings(settings, weights, prompt, job)
        dataset = test_dataset(evaluation, settings.split)
        content = launch(job, evaluate, evaluation)
        if job.machine_rank:
            continue
        if (content["figures"] is None) != (settings.split == "test-dev"):
            raise ValueError(
                f"--split {settings.split}, but {dataset} has "
                f"{'no ' * (content['figures'] is None)}annotations"
            )
        write_json(settings.folder / f"prompt_{prompt}.json", content)
        row = {"what": settings.stage, "split": split_name(dataset), "mode": content["mode"]}
        row["source"] = f"measured here, {weights}"
        if content["figures"] is None:
            predictions = settings.folder / f"prompt_{prompt}" / "inference" / RESULTS_FILE
            row["source"] = f"to be measured by the server, {write_upload(settings, predictions)}"
        rows.append(row | (content["figures"] or {}))
    return rows if job.machine_rank == 0 else None


def split_name(dataset: str) -> str:
    """COCO's name of the split where the dataset is one of COCO's, else the dataset's own."""
    return next((split for split, name in SPLITS.items() if name == dataset), dataset)


def write_upload(settings: ReproduceSettings, predictions: Path) -> Path:
    """Write `detections_test-dev2017_<name>_results.json` and its zip file; returns the latter."""
    content = read_json(predictions)
    results = [{key: result[key] for key in SERVER_KEYS} for result in content]
    path = settings.folder / f"detections_test-dev2017_{settings.server_name}_results.json"
    with atomic_text(path) as file:
        json.dump(results, file)
    archive = path.with_suffix(".zip")
    with atomic_bytes(archive) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(path, path.name)
    print(
        f"{archive}: {len(results)} masks, for COCO's evaluation server (segmentation, test-dev; "
        "see https://cocodataset.org/#upload)"
    )
    return archive


def format_table(subset: str, rows: list[dict[str, Any]]) -> str:
    """Measured rows and, below, the reported one, each with its split and mode."""
    reported = {
        "what": "student",
        "split": "test-dev",
        "mode": "detector AP",
        "AP": read_releases()[subset].test_dev_ap,
        "source": "reported (arXiv 2303.15062)",
    }
    columns = ("what", "split", "mode", *METRICS, "source")
    cells = [[row.get(column) for column in columns] for row in [*rows, reported]]
    table = tabulate(cells, columns, floatfmt=".1f", missingval="-", disable_numparse=[0, 1, 2, 9])
    return f"Mask AP, subset {subset}\n{table}"
