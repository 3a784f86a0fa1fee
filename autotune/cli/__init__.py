"""The command line: click and rich, and nothing else."""
