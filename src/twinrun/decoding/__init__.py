"""Image files and their pixels: one decoder for each format, the same bytes on every machine."""
