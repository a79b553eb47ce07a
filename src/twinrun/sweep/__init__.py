"""Sweeps: trials proposed by Optuna, run by a launcher, judged at rungs; the same result for any number of workers."""
