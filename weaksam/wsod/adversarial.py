"""Train a detector together with a part that is trained against it (SPEC_WEAKSAM 4.1, 8.4).

An iteration takes two passes over its batch: one whose loss the detector lowers, and one whose loss
the adversary, Concrete DropBlock, raises. Each has an optimizer of its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from detectron2.config import CfgNode
from detectron2.engine.train_loop import SimpleTrainer
from detectron2.solver import build_optimizer
from detectron2.utils.events import get_event_storage

__all__ = ["AdversarialTrainer", "build_adversarial_loop", "build_detector_optimizer"]


class AdversarialTrainer(SimpleTrainer):
    """`SimpleTrainer` with a second pass and step for the adversary in each iteration.

    Args:
        model, data_loader, optimizer: see `SimpleTrainer`; `optimizer` leaves the adversary alone.
        adversary_optimizer: has the adversary's parameters.
        adversary_schedule: of its rate; steps once an iteration.
        loss_weight: the second pass minimizes -loss_weight * loss.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: Optimizer,
        *,
        adversary_optimizer: Optimizer,
        adversary_schedule: MultiStepLR,
        loss_weight: float,
    ):
        super().__init__(model, data_loader, optimizer)
        self.adversary_optimizer = adversary_optimizer
        self.adversary_schedule = adversary_schedule
        self.loss_weight = loss_weight

    def _next_batch(self) -> Any:
        self._batch = super()._next_batch()
        return self._batch

    def run_step(self) -> None:
        super().run_step()
        rate = self.adversary_optimizer.param_groups[0]["lr"]
        get_event_storage().put_scalar("lr_adversary", rate, smoothing_hint=False)
        self.adversary_schedule.step()  # of every iteration, also one that changed nothing

    def _update(self) -> None:
        super()._update()
        self.adversary_optimizer.zero_grad()
        loss = -self.loss_weight * sum(self.model(self._batch).values())
        self._backward(loss)
        self._update_adversary()

    def _update_adversary(self) -> None:
        self.adversary_optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "adversary_optimizer": self.adversary_optimizer.state_dict(),
            "adversary_schedule": self.adversary_schedule.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.adversary_optimizer.load_state_dict(state_dict["adversary_optimizer"])
        self.adversary_schedule.load_state_dict(state_dict["adversary_schedule"])


def build_detector_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """`build_optimizer` over all trainable parameters but the adversary's."""
    own = list(model.adversary.parameters())
    for parameter in own:
        parameter.requires_grad_(False)
    try:
        return build_optimizer(cfg, model)
    finally:
        for parameter in own:
            parameter.requires_grad_(True)


def build_adversarial_loop(
    cfg: CfgNode, model: nn.Module, data_loader: Iterable, optimizer: Optimizer
) -> AdversarialTrainer:
    """The loop of a model, perhaps in DistributedDataParallel, whose `adversary` is a module."""
    if cfg.SOLVER.AMP.ENABLED:
        raise ValueError(
            "MODEL.WSOD.DROP_BLOCK trains in full precision: set SOLVER.AMP.ENABLED False, or "
            "MODEL.WSOD.DROP_BLOCK.ENABLED False"
        )
    node = cfg.MODEL.WSOD.DROP_BLOCK
    adversary = getattr(model, "module", model).adversary
    adversary_optimizer = torch.optim.Adam(
        adversary.parameters(), lr=node.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    return AdversarialTrainer(
        model,
        data_loader,
        optimizer,
        adversary_optimizer=adversary_optimizer,
        adversary_schedule=MultiStepLR(adversary_optimizer, list(cfg.SOLVER.STEPS), node.GAMMA),
        loss_weight=node.LOSS_WEIGHT,
    )
