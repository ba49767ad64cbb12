"""Number formats and compression maths."""
