"""Making a project: its files and the presets of its settings."""
