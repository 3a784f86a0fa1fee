"""The study file: its keys, its checks, and what is derived from it."""
