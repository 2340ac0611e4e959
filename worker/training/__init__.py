"""The trainer: a job spec in, events out; it knows neither Redis nor Celery."""
