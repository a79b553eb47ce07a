"""What stages hand to one another: pack, table of facts, pairs of near duplicates, manifest."""
