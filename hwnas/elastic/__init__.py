"""Weight sharing: one network that holds all subnetworks, and the way out to a plain dense model."""
