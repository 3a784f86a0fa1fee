"""Processes on this host: a server from its start to the proof of its end, and what it runs on."""
