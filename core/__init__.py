"""The engine: locate, test, repair and verify a backdoor in a causal language model."""
