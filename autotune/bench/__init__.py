"""The load on one server: the same requests, at the same times, for every trial of a study."""
