"""What a new release of vLLM changes for autotune, as a page; see ``__main__.py``."""
