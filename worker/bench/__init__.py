"""What fits: the largest batch and the peak of a step, full logits against ours, on real models."""
