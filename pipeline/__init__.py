"""The five stages of dvc.yaml, a thin file each: read files, call the library, write files."""

from twinrun.base.errors import end_quietly_while_importing, is_program
from twinrun.base.printing import open_closed_streams
from twinrun.base.progress import show_imports

if is_program("pipeline."):
    open_closed_streams()
    end_quietly_while_importing()
    show_imports()
