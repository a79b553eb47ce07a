"""Judging the table of facts: searches, drops, checks as data, and the words for what was found. Decodes nothing."""
