"""The label programs as functions of their command words, each returning its exit code."""

from functools import partial

from wsis.cli.main import program

split_coco = partial(program, "split")
merge_labels = partial(program, "merge")
evaluate_labels = partial(program, "evaluate-labels")
import_points = partial(program, "import-points")
convert_bdd100k = partial(program, "convert-bdd100k")
voc_to_coco = partial(program, "voc-to-coco")
make_shapes = partial(program, "make-shapes")
