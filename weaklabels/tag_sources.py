"""Make image tags from VOC XML, COCO instances, a CSV file or a folder for each class.

Only names and classes are taken over. Image ids are the digits of VOC's names, those of the COCO
file, or else 1, 2, ... in the order of file names.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from weaklabels.coco import CocoFile
from weaklabels.csv_tables import REST, read_table
from weaklabels.voc import CLASS_NAMES, read_image_set, read_voc_annotation, voc_image_id

from .pictures import image_size_hw
from .tags import TaggedImage, Tags, require_every_class

CSV_COLUMNS = ("image", "label")
LABEL_SEPARATOR = ";"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def tags_from_voc(
    root: str | Path,
    split: str,
    *,
    difficult: bool,
    classes: Sequence[str] = CLASS_NAMES,
    allow_absent: bool = False,
) -> Tags:
    """Tags of the split `ImageSets/Main/{split}.txt`.

    Args:
        root: a folder with `Annotations`, `ImageSets` and `JPEGImages`, such as VOC2007.
        difficult: keep a class of which an image has difficult objects only.
        allow_absent: take a split without any image of some class.
    """
    root = Path(root)
    images = []
    for name in read_image_set(str(root / "ImageSets" / "Main" / f"{split}.txt")):
        path = root / "Annotations" / f"{name}.xml"
        content = read_voc_annotation(str(path))
        shown = set()
        for number, thing in enumerate(content.objects, start=1):
            if thing.name not in classes:
                raise ValueError(_outside(f"{path}, object {number}", thing.name, classes))
            if difficult or not thing.difficult:
                shown.add(classes.index(thing.name) + 1)
        size = content.height, content.width
        images.append(
            TaggedImage(voc_image_id(name), f"{name}.jpg", *size, category_ids=tuple(sorted(shown)))
        )
    tags = Tags(
        images=tuple(images),
        categories=tuple(enumerate(classes, start=1)),
        split=split,
        difficult=difficult,
        source=f"VOC {root.name} {split}",
    )
    return _checked(tags, allow_absent)


def tags_from_coco(
    path: str | Path, *, difficult: bool, split: str | None = None, allow_absent: bool = False
) -> Tags:
    """Tags of a COCO instance file, whose boxes and masks are not looked at.

    Args:
        difficult: keep a class of which an image has crowds only.
        split: by default the file's name without "instances_".
    """
    file = CocoFile(path)
    shown: dict[int, set[int]] = defaultdict(set)
    for annotation in file.annotations():
        if difficult or not annotation.get("iscrowd", 0):
            shown[annotation["image_id"]].add(annotation["category_id"])
    images = (
        TaggedImage(
            *(image[key] for key in ("id", "file_name", "height", "width")),
            category_ids=tuple(sorted(shown[number])),
        )
        for number, image in sorted(file.images.items())
    )
    names = ((entry["id"], entry["name"]) for entry in file.header["categories"])
    tags = Tags(
        images=tuple(images),
        categories=tuple(sorted(names)),
        split=split or file.path.stem.removeprefix("instances_"),
        difficult=difficult,
        source=f"COCO {file.path.name}",
        file=str(path),
    )
    return _checked(tags, allow_absent)


def tags_from_csv(
    path: str | Path,
    image_root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    allow_absent: bool = False,
) -> Tags:
    """Tags of a CSV file with the columns `image` and `label`, and a row for each image.

    `label` holds the image's classes with ";" between them, or nothing.

    Args:
        image_root: the folder that the column `image` starts from.
        classes: in the order of their ids; by default those of the file by name.
    """
    path = Path(path)
    labels: dict[str, tuple[frozenset[str], str]] = {}
    for where, file_name, names in _csv_rows(path):
        outside = sorted(names - set(classes)) if classes is not None else []
        if outside:
            raise ValueError(_outside(f"{where}, image {file_name}", outside[0], classes))
        first_names, first_where = labels.setdefault(file_name, (names, where))
        if names != first_names:
            raise ValueError(
                f"{where}: image {file_name} has the tags {sorted(names)}, but "
                f"{sorted(first_names)} at {first_where}; give it one row with all its tags, "
                f"{LABEL_SEPARATOR!r} between them"
            )
    if not labels:
        raise ValueError(f"{path}: no image; expected rows below the line image,label")
    found = ((name, labels[name]) for name in sorted(labels))
    shown = [(name, names, where) for name, (names, where) in found]
    source = f"CSV {path.name}"
    return _from_files(Path(image_root), shown, classes, split, source, allow_absent, str(path))


def tags_from_folders(
    root: str | Path,
    *,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    allow_absent: bool = False,
) -> Tags:
    """Tags of the images below DIR, each in the folder of its one class: DIR/CLASS/IMAGE.jpg.

    Args:
        classes: in the order of their ids; by default all folders by name.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; expected one folder for each class in it")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        raise ValueError(f"{root} has no folder; expected one for each class, with images in it")
    shown = []
    for folder in folders:
        if classes is not None and folder.name not in classes:
            raise ValueError(_outside(str(folder), folder.name, classes))
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        names = frozenset([folder.name])
        shown += [(str(p.relative_to(root).as_posix()), names, str(root)) for p in files]
    names = classes if classes is not None else [folder.name for folder in folders]
    source = f"folders {root.name}"
    return _from_files(root, sorted(shown), names, split, source, allow_absent, str(root))


def _csv_rows(path: Path) -> Iterable[tuple[str, str, frozenset[str]]]:
    """(file:line, image, its labels) of each row."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected CSV with the columns image,label")
    for where, row in read_table(path, CSV_COLUMNS):
        file_name, label = ((row[name] or "").strip() for name in CSV_COLUMNS)
        if not file_name:
            raise ValueError(f"{where}: the row names no image")
        if REST in row:
            raise ValueError(
                f"{where}: more values than columns; put {LABEL_SEPARATOR!r} between the labels"
            )
        names = (name.strip() for name in label.split(LABEL_SEPARATOR))
        yield where, file_name, frozenset(name for name in names if name)


def _from_files(
    image_root: Path,
    shown: Sequence[tuple[str, frozenset[str], str]],
    classes: Sequence[str] | None,
    split: str | None,
    source: str,
    allow_absent: bool,
    file: str,
) -> Tags:
    """Tags of image files: (path below `image_root`, classes, what names it), numbered from 1."""
    if classes is None:
        classes = sorted(frozenset().union(*(names for _, names, _ in shown)))
    index_of = {name: number for number, name in enumerate(classes, start=1)}
    images = []
    for number, (file_name, names, where) in enumerate(shown, start=1):
        size = image_size_hw(image_root / file_name, where)
        ids = tuple(sorted(index_of[name] for name in names))
        images.append(TaggedImage(number, file_name, *size, category_ids=ids))
    # Nothing tells difficult objects apart here, so their classes are in.
    categories = tuple(enumerate(classes, 1))
    tags = Tags(tuple(images), categories, split, difficult=True, source=source, file=file)
    return _checked(tags, allow_absent)


def _outside(where: str, name: str, classes: Sequence[str]) -> str:
    return (
        f"{where}: {name!r} is not in the class list ({', '.join(classes)}); correct it or add it "
        "to the list"
    )


def _checked(tags: Tags, allow_absent: bool) -> Tags:
    if not allow_absent:
        require_every_class(tags)
    return tags
