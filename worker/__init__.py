"""The Celery side: claim a job, supervise its trainer, repair what was lost."""
