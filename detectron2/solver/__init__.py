"""Optimizers and learning-rate schedules."""

from .build import (
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
    reduce_param_groups,
)
from .gradient_clipping import (
    GradientClipType,
    create_gradient_clipper,
    maybe_add_gradient_clipping,
)
from .lr_scheduler import LRMultiplier, WarmupParamScheduler
