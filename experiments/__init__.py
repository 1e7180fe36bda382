"""The experiments of the report: they compute, plots draws."""
