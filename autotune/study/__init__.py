"""What the user wrote: the study file, its space, models and secrets."""
