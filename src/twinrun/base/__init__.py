"""Words and files: printing, progress, errors, hints, atomic writes. Decides no weight, and imports no other room."""
