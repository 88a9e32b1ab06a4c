"""Configurations: default.py, the nine cells, champion.py and speedrun.py."""
