"""The command `twinrun`."""

from twinrun.core.errors import end_quietly_while_importing

end_quietly_while_importing("twinrun")
