"""The server behind `twinrun serve`, and its page. PyTorch is never imported here."""
