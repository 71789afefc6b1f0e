"""Image files that cannot be read: the run goes on without them where it may, and lists them."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.bad_input.checks import refused
from tests.bad_input.world import SIDE, World, run
from weaklabels.limits import MAX_PIXELS_VARIABLE
from weaklabels.pictures import read_image


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header states a size, with hardly any pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_cut_off(path: Path) -> None:
    Image.open(path).convert("RGB").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-300])


IMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "jpeg cut off": jpeg_cut_off,
    "header of 50000 x 50000": lambda path: path.write_bytes(png_header(50_000, 50_000)),
    "header of 2^31": lambda path: path.write_bytes(png_header(2**31 - 1, 2**31 - 1)),
    "another size": lambda path: Image.new("RGB", (SIDE, SIDE + 1)).save(path, "PNG"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
GOES_ON = {"generate": "weak.jsonl", "refine": "refined.jsonl"}  # program, and what it writes


@pytest.mark.parametrize("fault", IMAGES)
@pytest.mark.parametrize("program", GOES_ON)
def test_the_run_goes_on_without_the_image(world: World, capfd, program: str, fault: str):
    IMAGES[fault](world.folder / "images" / "5.png")
    assert run(program, world.words(program)) == 1
    output = capfd.readouterr()
    assert "5.png" in output.out + output.err and "Traceback" not in output.err
    written = (world.out / GOES_ON[program]).read_text()
    assert "4.png" in written and "6.png" in written and "5.png" not in written


@pytest.mark.parametrize("fault", ["missing", "jpeg cut off", "header of 2^31", "a folder"])
@pytest.mark.parametrize("program", ["train", "train-refiner"])
def test_training_stops_with_the_name_of_the_image(world: World, capfd, program: str, fault: str):
    for number in (1, 2, 3):
        IMAGES[fault](world.folder / "images" / f"{number}.png")
    refused(world, program, capfd, ".png")


@pytest.mark.parametrize("fault", [f for f in IMAGES if f != "another size"])
@pytest.mark.parametrize("program", ["demo", "import-points", "convert-bdd100k"])
def test_an_image_that_is_asked_for_is_named(world: World, capfd, program: str, fault: str):
    number = 4 if program == "import-points" else 1
    path = world.folder / "images" / f"{number}.png"
    IMAGES[fault](path)
    if program != "demo" and "cut off" in fault:
        pytest.skip("the size of the image is all that is read, and that is there")
    refused(world, program, capfd, path.name)


@pytest.mark.parametrize("fault", [f for f in IMAGES if f != "another size"])
@pytest.mark.parametrize("folder", ["SegmentationObject", "SegmentationClass"])
def test_masks_of_voc(world: World, capfd, folder: str, fault: str):
    path = world.folder / "VOC2012" / folder / "2007_000001.png"
    if "jpeg" in fault:
        pytest.skip("VOC's masks are PNGs")
    IMAGES[fault](path)
    if fault == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    refused(world, "voc-to-coco", capfd, "2007_000001.png")


@pytest.mark.parametrize("fault", ["empty", "header of 2^31"])
def test_converters_leave_an_image_out_and_list_it(world: World, capfd, fault: str):
    frames = world.json("bdd.json")
    world.edit("bdd.json", lambda content: [*content, frames[0] | {"name": "2.png"}])
    voc = world.folder / "VOC2012"
    for place in ("JPEGImages", "SegmentationObject", "SegmentationClass"):
        for path in list((voc / place).iterdir()):
            shutil.copy(path, path.with_name(path.name.replace("000001", "000002")))
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000001\n2007_000002\n")
    IMAGES[fault](world.folder / "images" / "1.png")
    IMAGES[fault](voc / "JPEGImages" / "2007_000001.jpg")
    for program, output, left, kept in (
        ("convert-bdd100k", "bdd.json", "1.png", "2.png"),
        ("voc-to-coco", "voc.json", "2007_000001.jpg", "2007_000002.jpg"),
    ):
        assert run(program, world.words(program)) == 1
        err = capfd.readouterr().err
        assert left in err and "Traceback" not in err and "1 images could not be read" in err
        content = json.loads((world.out / output).read_text())
        assert [image["file_name"] for image in content["images"]] == [kept]
        assert len(content["annotations"]) == 1


@pytest.mark.parametrize("fault", ["empty", "text", "cut off", "header of 50000 x 50000"])
def test_bitmasks_of_bdd100k(world: World, capfd, fault: str):
    folder = world.folder / "bitmasks"
    folder.mkdir()
    (world.folder / "images" / "1.png").rename(world.folder / "images" / "1.jpg")
    Image.new("RGBA", (SIDE, SIDE), (1, 0, 0, 1)).save(folder / "1.png")
    words = ["--bitmasks", str(folder), "--image-root", str(world.folder / "images")]
    words += ["--output", str(world.out / "new.json")]
    assert run("convert-bdd100k", words) == 0
    IMAGES[fault](folder / "1.png")
    if fault == "cut off":
        (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    refused(world, "convert-bdd100k", capfd, "1.png", words=words)


def test_the_limit_in_pixels_can_be_raised_and_lowered(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("L", (300, 200)).save(path)
    assert read_image(path, (200, 300)).shape == (200, 300, 3)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "59999")
    with pytest.raises(ValueError, match=f"59999 pixels, {MAX_PIXELS_VARIABLE}=N raises it"):
        read_image(path, (200, 300))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "60000")
    assert read_image(path, (200, 300)).shape == (200, 300, 3)


@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG"])
def test_every_reader_turns_an_image_the_same_way(tmp_path, form: str):
    from detectron2.data.image_utils import read_image as read_for_training

    path = tmp_path / "turned"
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its right side
    picture.save(path, form, exif=exif)
    upright = read_image(path, (40, 20))
    assert upright[5, 10, 0] > 200 and upright[35, 10, 0] < 50
    assert (read_for_training(str(path), "RGB") == upright).all()


OUTSIDE = {
    "above": "../secret.png",
    "hidden": "a/../../secret.png",
    "absolute": "{folder}/secret.png",
    "link": "link.png",
    "linked folder": "linked/secret.png",
}


@pytest.mark.parametrize("case", OUTSIDE)
@pytest.mark.parametrize("program", ["generate", "refine", "train"])
def test_no_image_outside_the_root_is_read_unless_allowed(
    world: World, capfd, program: str, case: str
):
    images = world.folder / "images"
    (images / "5.png").rename(world.folder / "secret.png")
    os.link(world.folder / "secret.png", images / "5.png")
    (images / "link.png").symlink_to(world.folder / "secret.png")
    (images / "linked").symlink_to(world.folder)
    (images / "a").mkdir()
    name = OUTSIDE[case].format(folder=world.folder)
    number = 2 if program == "train" else 5

    def rename(content: dict) -> None:
        for image in content["images"]:
            if image["id"] == number:
                image["file_name"] = name

    for file in ("weak.json", "strong.json"):
        world.edit(file, rename)
    for file in ("weak.jsonl", "strong.jsonl"):
        world.edit_record(file, lambda r: r.update(file_name=name))
    if program == "refine" and "link" in case:  # it goes on without the image
        assert run(program, world.words(program)) == 1
        assert name not in (world.out / "refined.jsonl").read_text()
    else:
        refused(world, program, capfd, name.split("/secret")[0], "outside-root")
    assert run(program, ["--allow-outside-root", *world.words(program)]) == 0
