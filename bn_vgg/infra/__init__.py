"""What keeps a run whole: its folder, checkpoints and locks; its hosts, signals and provenance."""
