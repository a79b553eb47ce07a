"""The command `twinrun`."""

from twinrun.base.errors import end_quietly_while_importing, is_program
from twinrun.base.printing import open_closed_streams
from twinrun.base.progress import show_imports

if is_program("twinrun"):
    open_closed_streams()
    end_quietly_while_importing()
    show_imports()
