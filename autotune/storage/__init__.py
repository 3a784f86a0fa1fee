"""What is kept: the only room that touches SQL."""
