"""Search: seeds, then the launch of the largest expected gain; Pareto front and confirmation."""
