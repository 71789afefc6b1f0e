"""Label files without a network: COCO, masks, points, records, shards, split, merge, quality."""
