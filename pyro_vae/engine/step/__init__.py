"""A training step: gradients, guard, clip, update."""
