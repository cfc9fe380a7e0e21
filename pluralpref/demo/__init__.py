"""The demo: simulated annotators whose heterogeneity is known, every objective on each population."""
