"""Configuration: a tree of keys with defaults, YAML files with `_BASE_`, and `@configurable`."""

from .config import CfgNode, configurable, global_cfg, set_global_cfg
from .defaults import get_cfg
