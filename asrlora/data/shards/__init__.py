"""WebDataset tars: written, indexed, read by offset."""
