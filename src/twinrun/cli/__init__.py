"""The command `twinrun`."""

from twinrun.base.errors import end_quietly_while_importing, is_program
from twinrun.base.progress import show_imports

if is_program("twinrun"):
    end_quietly_while_importing()
    show_imports()
