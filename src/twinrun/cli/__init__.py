"""The command `twinrun`."""

from twinrun.base.errors import end_quietly_while_importing

end_quietly_while_importing("twinrun")
