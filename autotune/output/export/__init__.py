"""The winner of a study as a file for production."""
