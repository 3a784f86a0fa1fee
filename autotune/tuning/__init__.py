"""The runs: what plans, launches, measures and records; nothing else in autotune does all of it."""
