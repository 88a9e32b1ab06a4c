"""Finds where a number became one that is not finite."""
