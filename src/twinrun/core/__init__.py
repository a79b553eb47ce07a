"""What every room builds on: errors, settings, files, keyed randomness, progress. Imports no other room."""
