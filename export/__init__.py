"""Turns a trained model into a deployable artifact: one pipeline a target, each with a report."""
