"""What follows from a results file: choices, figures and pages. Never imports torch, `variants` or `benchmarks`."""
