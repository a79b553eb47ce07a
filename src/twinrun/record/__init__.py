"""What made a run, kept as files: card, journal, code and energy. No MLflow."""
