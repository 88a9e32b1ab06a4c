"""What `experiments.sweep` is made of: plan, state, driver, and where runs are executed."""
