"""Train a tiny SOLOv2 for three steps and print its losses and weights; run by test_losses.py.

Arguments: file that the processes meet at, number of processes, own rank. Two images, divided
between the processes.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "AdelaiDet")]

import torch  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from adet.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import BitMasks, Instances  # noqa: E402


def make_record(seed: int, count: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 64, 64, dtype=torch.bool)
    for mask in masks:
        y, x, size = torch.randint(8, 28, (3,), generator=generator).tolist()
        mask[y : y + size, x : x + size] = True
    instances = Instances((64, 64), gt_masks=BitMasks(masks))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.arange(count) % 4
    return {"image": torch.rand(3, 64, 64, generator=generator) * 255, "instances": instances}


def main(store: str, processes: int, rank: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "Quickstart" / "Base-small.yaml"))
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM = "FrozenBN", ""
    cfg.MODEL.SOLOV2.NUM_GRIDS, cfg.MODEL.SOLOV2.NUM_CLASSES = [8, 6, 5, 4, 3], 4
    model = build_model(cfg).train()
    wrapped = model
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", world_size=processes, rank=rank
        )
        wrapped = DistributedDataParallel(model)
    records = [make_record(seed=1, count=5), make_record(seed=2, count=0)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(3):
        parts = wrapped(records[rank::processes])
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
        losses.append([parts[name].item() for name in ("loss_ins", "loss_cate")])
    weights = [p.detach().double().square().sum().item() for p in model.parameters()]
    print(json.dumps({"losses": losses, "weights": weights}))
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
