"""A server's commits, and the deleting of what they supersede."""
