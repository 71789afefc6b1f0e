"""SOLOv2 with point prompts, on the detectron2 package of this repository."""
