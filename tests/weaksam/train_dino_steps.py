"""Train a tiny DINO for three steps and print its losses and weights; run by test_dino_network.py.

Arguments: file that the processes meet at, number of processes, own rank, denoising queries. Two
images, divided between the processes; the second has no label.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "AdelaiDet")]

import torch  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from detectron2.utils.events import EventStorage  # noqa: E402
from tests.weaksam.dino_samples import make_input, small_dino  # noqa: E402


def main(store: str, processes: int, rank: int, denoising: int) -> None:
    torch.set_num_threads(1)
    model = small_dino(MODEL__RESNETS__NORM="FrozenBN", MODEL__DINO__DN_QUERIES=denoising)
    wrapped = model.train()
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", world_size=processes, rank=rank
        )
        wrapped = DistributedDataParallel(model)
    # 80 pixels: group norm needs more than one place on the last map.
    records = [make_input(1, 80, 80, count=5), make_input(2, 80, 80, count=0)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    with EventStorage():
        for _ in range(3):
            parts = wrapped(records[rank::processes])
            optimizer.zero_grad()
            sum(parts.values()).backward()
            optimizer.step()
            losses.append([value.item() for value in parts.values()])
    weights = [p.detach().double().square().sum().item() for p in model.parameters()]
    print(json.dumps({"losses": losses, "weights": weights}))
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
