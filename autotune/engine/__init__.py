"""What is known of vLLM: rules, flags, failures, its start; starts nothing but the probe."""
