"""What the service and the workers share: the job record, its store, files and errors."""
