"""The near-duplicate search: descriptors, neighbours, alignment."""
