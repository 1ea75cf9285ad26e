"""Statistics of a student's matrix products and states over real data, taken once for every target."""
