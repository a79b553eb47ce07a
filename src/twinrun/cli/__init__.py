"""The command `twinrun`."""
