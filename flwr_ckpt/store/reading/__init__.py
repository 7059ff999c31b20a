"""Finding what counts, and looking at it: nothing here makes, moves or deletes anything."""
