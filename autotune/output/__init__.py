"""What is handed out of a study: figures, the report, the dashboard, files for production."""
