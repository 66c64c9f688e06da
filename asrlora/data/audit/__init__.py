"""What makes a run worthless, found before any step."""
