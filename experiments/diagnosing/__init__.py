"""What one run's metrics say of its spikes, its running averages and its dead units."""
