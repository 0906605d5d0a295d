"""Federated training: one super-network, learned where the data lives, each client on its part.

Each device's latency table says the largest subnetwork that its budget allows (`tiers`). A client
is sent that part of the weights and nothing else (`parts`), trains it and subnetworks nested in it
on its own rows (`local`), and sends the part back; the server averages every coordinate over those
who trained it (`aggregation`). What travels and who answers is Flower's Message API (`server`,
`client`), run in simulation, on a SuperLink with SuperNodes, or by `flwr run`.

The uses are those of Yu, Muñoz and Jannesari, "Federated Foundation Models" (LREC-COLING 2024).
"""
