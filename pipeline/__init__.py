"""The five stages of dvc.yaml, a thin file each: read files, call the library, write files."""
