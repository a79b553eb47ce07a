"""The architectures by name, and a model on disk."""
