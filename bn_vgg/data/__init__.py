"""From images somewhere to the windows of a batch: source, cache, splits, windows."""
