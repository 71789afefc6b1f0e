"""Other datasets' labels as COCO files."""
