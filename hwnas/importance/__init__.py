"""Importance of a model's parts: what is asked for (`spec`), how it is measured (`kinds`), what is
known then (`scores`), and sorting the parts by it, so that every prefix is the best part of its
size (`reordering`)."""
