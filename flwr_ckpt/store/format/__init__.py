"""What a run's folder consists of, part by part: how each is written down, and read without being believed."""
