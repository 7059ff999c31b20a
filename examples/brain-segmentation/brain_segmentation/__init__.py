"""A brain in parts: a segmentation whose architecture is planned by its clients, and survives a crash."""
