"""The five stages of dvc.yaml, a thin file each: read files, call the library, write files."""

from twinrun.base.errors import end_quietly_while_importing

end_quietly_while_importing("pipeline.")
