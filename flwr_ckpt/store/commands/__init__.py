"""What is done to a run from outside: going back, forking, pruning, removing."""
