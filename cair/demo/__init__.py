"""`make demo`: the whole job, walked by a small program that says at each step what happened."""
