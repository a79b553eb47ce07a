"""`twinrun doctor`: what is wrong with a project and the command that fixes it."""
