"""Judge pseudo labels of COCO's weak images, as they are or before and after refinement."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from weaklabels.coco import CocoFile
from weaklabels.evaluate import evaluate_labels, format_report, load_images
from weaklabels.files import file_sha256, read_json, write_json
from weaklabels.model_folder import weights_file
from weaklabels.shards import RecordShards
from wsis.launcher import Job
from wsis.pseudo_labels import GenerateSettings, generate
from wsis.refine import RefineSettings, refine

ANNOTATIONS_URL = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"


@dataclass(frozen=True)
class LabelFiles:
    """COCO files: all masks of the images, and the weak images with their points."""

    truth: Path
    weak: Path


@dataclass(frozen=True)
class Refinement:
    """A refiner, and a teacher or records of one, whose masks on the weak images it redraws.

    config_file, overrides: of the teacher.
    """

    refiner: Path
    teacher: Path | None
    records: Path | None
    image_root: Path
    config_file: str
    overrides: tuple[str, ...] = ()


def label_files(subset: str, truth: Path | None, weak: Path | None) -> LabelFiles:
    """The own files, or those of a registered subset.

    Raises:
        FileNotFoundError: one is missing; the message says how to get it.
    """
    if truth is None:
        truth = Path(MetadataCatalog.get("coco_2017_train").json_file)
    if weak is None:
        weak = Path(MetadataCatalog.get(f"coco_2017_train_{subset}_w").json_file)
    if not truth.is_file():
        raise FileNotFoundError(
            f"{truth} is missing: it is in {ANNOTATIONS_URL}, or give --annotations"
        )
    if not weak.is_file():
        raise FileNotFoundError(
            f"{weak} is missing; it says which images are weak. For the released files it has to "
            f"be the one of PointWSSIS's own split (wsis download --subset {subset} --what split); "
            "give it with --weak-annotations"
        )
    return LabelFiles(truth, weak)


def judge_labels(
    labels: Path, files: LabelFiles, report_path: Path, what: str
) -> list[dict[str, Any]]:
    """Judge pseudo labels against the full annotations; table rows.

    Args:
        labels: a merged COCO file, or records.
        what: what the rows call them.
    """
    if labels.suffix == ".json":
        check_split(labels, files.weak)
    images = load_images(labels, files.truth, files.weak)
    header = CocoFile(files.truth).header
    names = {c["id"]: str(c.get("name", c["id"])) for c in header["categories"]}
    report = evaluate_labels(images, names, str(labels))
    write_json(report_path, report)
    print(format_report(report))
    common = {"what": what, "split": f"weak images of {files.weak.name}"}
    common["source"] = f"measured here, {labels}"
    return [
        common | {"mode": f"pseudo-label quality: {mode}"} | figures
        for mode, figures in report["mask_ap"].items()
    ]


def check_split(labels: Path, weak: Path) -> None:
    """Refuse a merged file whose strong images are weak ones in `weak`.

    Their true masks would count as pseudo labels. Pseudo labels are compressed RLE; polygons are
    true masks.
    """
    weak_ids = set(CocoFile(weak).images)
    mixed = {
        a["image_id"]
        for a in CocoFile(labels).annotations()
        if a["image_id"] in weak_ids and isinstance(a.get("segmentation"), list)
    }
    if mixed:
        raise ValueError(
            f"{labels} has polygons, which are true masks, in {len(mixed)} images (such as id "
            f"{min(mixed)}) that are weak in {weak}: the two files are of different splits"
        )


def refine_and_judge(
    work: Refinement, files: LabelFiles, folder: Path, job: Job
) -> list[dict[str, Any]] | None:
    """Let a teacher follow the points, refine its masks, judge both; rows, None on other machines.

    An interrupted call goes on; a finished one only judges again.

    Raises:
        ValueError: `folder` holds results of other files, or an image could not be read.
    """
    remember(work, files, folder)
    records = work.records or folder / "unrefined.jsonl"
    refined = folder / "refined.jsonl"
    if work.records is None and not RecordShards(records, {}).is_complete():
        generation = GenerateSettings(
            config_file=work.config_file,
            dataset=f"weak_images={files.weak}:{work.image_root}",
            output=records,
            overrides=work.overrides,
            weights=str(work.teacher),
            prompt="point",
        )
        made = generate(generation, job)
        refuse_unreadable(made.failures if made else [])
    if not RecordShards(refined, {}).is_complete():
        settings = RefineSettings(
            records=records,
            weights=work.refiner,
            image_root=work.image_root,
            output=refined,
            annotations=files.weak,
        )
        done = refine(settings, job)
        refuse_unreadable(done.unreadable if done else [])
    if job.machine_rank:
        return None
    before = judge_labels(records, files, folder / "unrefined.json", "pseudo labels, unrefined")
    after = judge_labels(refined, files, folder / "refined.json", "pseudo labels, refined")
    return [*before, *after]


def refuse_unreadable(failures: list[str]) -> None:
    """Figures would be of fewer images than they say."""
    if failures:
        raise ValueError(
            f"{len(failures)} images could not be read (such as {failures[0]}): correct them and "
            "give the same command again"
        )


def remember(work: Refinement, files: LabelFiles, folder: Path) -> None:
    """Note what the results in `folder` are made from, or check that it is the same as before."""
    paths = {**asdict(work), **asdict(files)}
    made_from = {name: str(value) for name, value in paths.items()}
    for name, value in paths.items():
        if isinstance(value, Path) and Path(weights_file(str(value))).is_file():
            made_from[name] = file_sha256(weights_file(str(value)))
    note = folder / "made_from.json"
    before = read_json(note) if note.exists() else made_from
    changed = sorted(name for name in made_from if before.get(name) != made_from[name])
    if changed:
        raise ValueError(
            f"{folder} holds results of another {', '.join(changed)}: remove it, or give another "
            "--output"
        )
    write_json(note, made_from, indent=1)
