"""A laboratory: Flower's own loops over clients that live in this process, and servers that are killed."""
