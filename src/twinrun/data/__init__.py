"""From a source to batches: decoding, facts, splits, expectations, keyed randomness."""
