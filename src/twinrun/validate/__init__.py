"""From facts to a verdict: searches, checks, splits, decisions and the report."""
