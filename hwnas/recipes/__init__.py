"""Recipes that hwnas ships: `hwnas run sst2` runs `sst2.yaml`, wherever it is called."""
