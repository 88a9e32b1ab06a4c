"""The questions' rules, figures and pages."""
