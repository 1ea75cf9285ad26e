"""Accuracy by task, by generation: questions, answers of a model on any backend, scoring rules, intervals, a report."""
