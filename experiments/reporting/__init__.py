"""The report of the ablation: runs found and sorted, claims decided, tables, figures, pages."""
