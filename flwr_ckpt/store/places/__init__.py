"""Where a run lies: a folder on a disk, or a bucket, behind one small set of operations."""
