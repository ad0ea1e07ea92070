"""Side-by-side measurements: ratios of two ways in one run, never bare speeds."""
