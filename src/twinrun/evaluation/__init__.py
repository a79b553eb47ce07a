"""Scores with intervals, and the pictures that explain them."""
