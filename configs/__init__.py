"""Configurations: default.py and the nine cells of the grid."""
