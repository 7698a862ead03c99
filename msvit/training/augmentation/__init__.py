"""Training images changed at random, on their device and a whole batch at once."""
