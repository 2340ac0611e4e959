"""The loss in Triton: one mathematical step a file, a kernel and its launcher."""
