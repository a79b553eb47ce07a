"""What every room builds on: settings, array types, keyed randomness, cores. Imports base alone."""
