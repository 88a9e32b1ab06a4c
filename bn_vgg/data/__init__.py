"""From images somewhere to windows on a device: source, cache, splits, windows."""
