"""The read side: what a database says of a study, as people and programs see it; runs nothing."""
