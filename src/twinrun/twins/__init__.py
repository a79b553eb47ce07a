"""Training a run again: its worktree and data, the difference of two runs, the verdict."""
