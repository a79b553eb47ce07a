"""Fixtures that several folders of tests share stand in modules beside this one."""

pytest_plugins = ["tracking_support", "training_support", "twin_support"]
