"""From a source to the pack: folders and known sets, facts of each image, packing."""
