"""Federated recipes that hwnas ships."""
