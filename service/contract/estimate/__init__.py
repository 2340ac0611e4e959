"""What a job will need before anything of it runs: memory by component, and what fits where."""
