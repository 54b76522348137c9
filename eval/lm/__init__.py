"""Measures of language models: likelihood and completion of texts, associative recall, lm-evaluation-harness."""
