"""From images to chunks of batches: source, cache, splits, pipeline."""
