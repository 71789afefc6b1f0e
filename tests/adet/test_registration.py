"""`import adet` makes its networks known to `build_model`, without another import."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from adet.config import get_cfg
from detectron2.modeling import build_model

cfg = get_cfg()
cfg.merge_from_file("configs/Quickstart/shapes_student.yaml")
cfg.MODEL.DEVICE = "cpu"
print(type(build_model(cfg)).__name__)
"""


def test_the_config_alone_is_enough_to_build_a_network():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["SOLOv2"]
