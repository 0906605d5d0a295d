"""Weight sharing: one network that holds all subnetworks, and the way to a plain dense model."""
