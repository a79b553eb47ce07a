"""The diary: card, journal, MLflow store, registry. Nothing here is read to compute an output."""
