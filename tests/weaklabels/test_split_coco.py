"""Strong and weak parts: complete, disjoint, deterministic, and nothing but points in the weak."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from tests.programs import split_coco as main
from tests.weaklabels.coco_samples import decoded, make_coco
from weaklabels.split import choose_images, choose_stratified

GOLDEN = Path(__file__).parents[1] / "golden" / "merge"


def run(path, *args, out=None):
    out = out or path.parent / "out"
    assert main([str(path), *args, "--out-dir", str(out)]) == 0
    return {p.name: json.loads(p.read_text()) for p in sorted(out.iterdir())}


def split(path, *args, out=None):
    """(strong, weak) of the only pair that the arguments make."""
    files = run(path, *args, out=out)
    (strong,), (weak,) = (
        [v for name, v in files.items() if name.endswith(f"_{kind}.json")] for kind in "sw"
    )
    return strong, weak


def image_ids(part):
    return [image["id"] for image in part["images"]]


def test_split_files_keep_their_bytes(tmp_path):
    rule = ["--images", "1", "--stratify", "--points", "inside"]
    run(GOLDEN / "tiny_sw.json", *rule, out=tmp_path)
    for name in ("tiny_sw_1i_s.json", "tiny_sw_1i_w.json"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_the_file_is_given_by_its_flag_too(coco_path, tmp_path):
    flags = ["--annotations", str(coco_path), "--images", "3", "--output", str(tmp_path / "new")]
    assert main(flags) == 0
    old = run(coco_path, "--images", "3", out=tmp_path / "old")
    for name in old:
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    assert main(["--images", "3"]) == 2
    assert main([str(coco_path), *flags]) == 2


def test_names_follow_the_registered_data_sets(coco_path):
    files = run(coco_path, "--percent", "10", "2.5")
    assert list(files) == [
        f"instances_{name}_{kind}.json" for name in ("10p", "2.5p") for kind in "sw"
    ]
    assert [len(f["images"]) for f in files.values()] == [4, 36, 1, 39]


def test_strong_part_is_unchanged_and_weak_part_holds_points_only(coco, coco_path):
    strong, weak = split(coco_path, "--images", "15")
    chosen = set(image_ids(strong))
    assert len(chosen) == 15
    assert strong["images"] == [i for i in coco["images"] if i["id"] in chosen]
    assert weak["images"] == [i for i in coco["images"] if i["id"] not in chosen]
    assert strong["annotations"] == [a for a in coco["annotations"] if a["image_id"] in chosen]
    rest = [a for a in coco["annotations"] if a["image_id"] not in chosen and not a["iscrowd"]]
    assert len(weak["annotations"]) == len(rest)
    for got, full in zip(weak["annotations"], rest, strict=True):
        ys, xs = np.nonzero(decoded(full))
        point = got.pop("point")
        np.testing.assert_allclose(point, [xs.mean(), ys.mean()], atol=1e-4)
        same = ("id", "image_id", "category_id")
        assert got == {key: full[key] for key in same} | {"iscrowd": 0}
    assert all(weak[key] == coco[key] for key in ("info", "licenses", "categories"))


def test_nothing_but_points_leaks_into_the_weak_part(coco, tmp_path):
    """Whatever else a weak image's labels and the file say, the weak file stays the same."""
    outputs = []
    for garbage in (False, True):
        if garbage:
            coco["segments"] = [a["segmentation"] for a in coco["annotations"]]
            for image in coco["images"]:
                image["boxes"] = "secret"
            for annotation in coco["annotations"]:
                annotation |= {"bbox": [0, 0, 1, 1], "area": 1, "keypoints": "secret"}
        path = tmp_path / str(garbage) / "a.json"
        path.parent.mkdir()
        path.write_text(json.dumps(coco))
        main([str(path), "--percent", "25"])
        outputs.append((path.parent / "a_25p_w.json").read_bytes())
    assert outputs[0] == outputs[1]


def test_the_same_seed_gives_the_same_bytes(coco, tmp_path):
    names = ("first", "again", "other")
    for name, seed in zip(names, (3, 3, 4), strict=True):
        path = tmp_path / name / "a.json"
        path.parent.mkdir()
        path.write_text(json.dumps(coco))
        main([str(path), "--percent", "30", "--points", "jitter:2", "--seed", str(seed)])
    first, again, other = (
        [(tmp_path / name / f"a_30p_{kind}.json").read_bytes() for kind in "sw"] for name in names
    )
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


@pytest.mark.parametrize("stratify", [[], ["--stratify"]])
def test_folds_are_disjoint_and_named(coco_path, tmp_path, stratify):
    seen = []
    for fold in range(5):
        args = ["--images", "7", "--fold", str(fold), *stratify]
        strong, _ = split(coco_path, *args, out=tmp_path / f"fold{fold}")
        seen += image_ids(strong)
    assert len(set(seen)) == len(seen) == 35
    assert (tmp_path / "fold2" / "instances_7i_fold2_s.json").exists()


def test_unstratified_subsets_are_nested():
    few, many = (choose_images(range(100), n, 0, seed=5) for n in (10, 20))
    assert few < many


def test_stratified_choice_gives_every_class_its_share():
    """Of the images whose rarest class is c, n/N are taken, +-1, in every fold."""
    rng = random.Random(0)
    classes = {i: {c for c in range(12) if rng.random() < 0.5 / (c + 1)} for i in range(1000)}
    classes = {i: shown for i, shown in classes.items() if shown}
    frequency = {c: sum(c in shown for shown in classes.values()) for c in range(12)}
    strata = {}
    for i in range(1000):
        rarest = min(classes.get(i, ()), key=lambda c: (frequency[c], c), default=None)
        strata.setdefault(rarest, set()).add(i)
    seen = set()
    for fold in range(14):
        chosen = choose_stratified(range(1000), classes, 70, fold, seed=1)
        assert len(chosen) == 70
        assert not chosen & seen
        seen |= chosen
        for members in strata.values():
            assert abs(len(chosen & members) - 0.07 * len(members)) <= 2


def test_point_rules(coco, coco_path, tmp_path):
    by_id = {a["id"]: a for a in coco["annotations"]}
    points, moved = {}, 0
    for rule in ("centroid", "inside", "random", "jitter:3", "jitter:0"):
        args = ["--images", "2", "--points", rule]
        _, weak = split(coco_path, *args, out=tmp_path / rule.replace(":", ""))
        points[rule] = {a["id"]: a["point"] for a in weak["annotations"]}
    for number, (x, y) in points["centroid"].items():
        mask = decoded(by_id[number])
        ys, xs = np.nonzero(mask)
        for rule in ("inside", "random"):
            u, v = points[rule][number]
            assert mask[int(v), int(u)]
            assert mask[round(v), round(u)]
        u, v = points["inside"][number]
        if (u, v) != (x, y):
            moved += 1
            nearest = ((xs - x) ** 2 + (ys - y) ** 2).min()
            assert (u - x) ** 2 + (v - y) ** 2 == pytest.approx(nearest, abs=0.01)
        u, v = points["jitter:3"][number]
        assert 0 <= u <= mask.shape[1] - 1
        assert 0 <= v <= mask.shape[0] - 1
    assert moved > 5
    assert points["jitter:0"] == points["centroid"]
    away = [np.subtract(points["jitter:3"][n], points["centroid"][n]) for n in points["centroid"]]
    assert 2.4 < np.std(away) < 3.6


def test_random_points_do_not_depend_on_the_split(coco_path, tmp_path):
    args = ["--points", "random", "--images"]
    weak = [split(coco_path, *args, n, out=tmp_path / n)[1]["annotations"] for n in ("3", "9")]
    few, many = ({a["id"]: a["point"] for a in part} for part in weak)
    common = few.keys() & many.keys()
    assert len(common) > 20
    assert all(few[i] == many[i] for i in common)


def test_given_points_are_kept_where_there_is_no_mask(coco, tmp_path):
    for annotation in coco["annotations"]:
        for key in ("segmentation", "bbox", "area"):
            del annotation[key]
        annotation["point"] = [39.5, 12]
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != 103]
    path = tmp_path / "points.json"
    path.write_text(json.dumps(coco))
    out = tmp_path / "out"
    code = main([str(path), "--images", "1", "--skip-invalid", "--out-dir", str(out)])
    assert code == 0
    weak = json.loads((out / "points_1i_w.json").read_text())
    assert {tuple(a["point"]) for a in weak["annotations"]} == {(39.5, 12.0)}


BAD = [
    ({"segmentation": [], "bbox": [1, 1, 2, 2]}, "no mask|neither a mask nor a point"),
    ({"segmentation": [[1, 2, 3]]}, "3 corners"),
    ({"segmentation": {"size": [30, 40], "counts": None}}, "counts are None"),
    ({"segmentation": {"size": None, "counts": [1200]}}, "RLE of size None"),
    ({"segmentation": [["1", "2", "3", "4", "5", "6"]]}, "not a number"),
    ({"segmentation": {"size": [30, 40], "counts": [1200]}}, "empty mask"),
    ({"segmentation": [], "point": [41, 3]}, "outside the image of width 40, height 30"),
    ({"segmentation": [], "point": [float("nan"), 3]}, "outside"),
    ({"segmentation": [], "point": [3]}, "is not .x, y."),
    ({"category_id": 5}, "category_id 5"),
    ({"id": 5}, "annotation id 5: occurs twice"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_invalid_annotations_stop_the_split_or_are_listed(change, message, tmp_path, capsys):
    coco = make_coco(num_images=6, seed=1)
    coco["annotations"][1].update(change)
    number = coco["annotations"][1]["id"]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(coco))
    error = refused_then_skipped(path, coco["annotations"][1], strong=False, capsys=capsys)
    assert f"bad.json: annotation id {number}" in error
    assert re.search(message, error)


def refused_then_skipped(path, annotation, *, strong, capsys):
    """Error of a split in which the annotation's image is strong (weak); it also can be skipped."""
    seeds = (  # one image is strong, which one depends on the seed
        seed
        for seed in range(99)
        if (annotation["image_id"] in choose_images(range(101, 107), 1, 0, seed)) == strong
    )
    args = [str(path), "--images", "1", "--seed", str(next(seeds))]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert "--skip-invalid" in error
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert main([*args, "--skip-invalid"]) == 0
    output = capsys.readouterr()
    assert f"skipped: annotation id {annotation['id']}" in output.err
    assert "1 invalid annotations skipped" in output.err
    return error


BAD_MASKS = [
    ([[1, 1, 5, 5]], "3 corners"),
    ([[1, 1, 5, "5", 3, 3]], "not a number"),
    ({"size": [30, 40], "counts": "P"}, "compressed form"),
    ({"size": [30, 40], "counts": None}, "counts are None"),
    ({"size": [40, 30], "counts": [1200]}, "RLE of size"),
    ("mask.png", "no mask"),
    ([], "a strong image's annotation has no mask"),
]


@pytest.mark.parametrize(("segmentation", "message"), BAD_MASKS)
def test_masks_of_strong_images_are_checked_too(segmentation, message, tmp_path, capsys):
    coco = make_coco(num_images=6, seed=1)
    coco["annotations"][1]["segmentation"] = segmentation
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(coco))
    error = refused_then_skipped(path, coco["annotations"][1], strong=True, capsys=capsys)
    assert f"bad.json: annotation id {coco['annotations'][1]['id']}: " in error
    assert message in error


def test_polygons_too_thin_for_a_pixel_keep_a_point(tmp_path):
    coco = make_coco(num_images=2, seed=1)
    thin = [[5.1, 5.1, 5.3, 5.1, 5.3, 5.3, 5.1, 5.3]]
    for annotation in coco["annotations"]:
        annotation |= {"segmentation": thin, "iscrowd": 0}
    path = tmp_path / "thin.json"
    path.write_text(json.dumps(coco))
    _, weak = split(path, "--images", "1")
    assert all(a["point"] == pytest.approx([4.7, 4.7]) for a in weak["annotations"])


def test_labelling_cost_is_printed(coco_path, capsys):
    strong, weak = split(
        coco_path, "--images", "10", "--mask-seconds", "72", "--point-seconds", "3"
    )
    masks, points = len(strong["annotations"]), len(weak["annotations"])
    output = capsys.readouterr().out
    assert f"{masks} x 72 s + {points} x 3 s = {(masks * 72 + points * 3) / 3600:.1f} h" in output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--images", "40"], "need an image or more"),
        (["--images", "0"], "need an image or more"),
        (["--percent", "0.1"], "need an image or more"),
        (["--images", "7", "--fold", "5"], "folds 0 to 4 only"),
    ],
)
def test_amounts_that_do_not_fit_are_errors(coco_path, capsys, args, message):
    assert main([str(coco_path), *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--skip-invalid" not in error


@pytest.mark.parametrize("rule", ["middle", "jitter", "jitter:", "jitter:-1", "jitter:nan"])
def test_unknown_point_rules_are_refused(coco_path, capsys, rule):
    with pytest.raises(SystemExit):
        main([str(coco_path), "--images", "3", "--points", rule])
    assert "jitter:SIGMA" in capsys.readouterr().err
