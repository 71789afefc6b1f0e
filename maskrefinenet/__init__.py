"""MaskRefineNet: refine instance masks from an image crop, a labelled point and a prior mask."""
