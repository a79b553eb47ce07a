"""Image classification pipelines whose every training run can be run again and gives the same weights."""
