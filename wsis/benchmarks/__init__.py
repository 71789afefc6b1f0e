"""Speed and memory of the hot paths against plain references."""
