"""A model and the images that people pass to it, in every form."""
