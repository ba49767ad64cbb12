"""What a federated run did, round by round: a journal, a summary, JSON and one HTML page."""
