"""What the devices compute: steps, metrics and programs of several, and how batches reach them."""
