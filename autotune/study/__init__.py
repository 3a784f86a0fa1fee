"""What the user wrote: the study file, its keys and its place."""
