"""Shards, the LightningModule, fit and resume."""
