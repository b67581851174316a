"""The daemon's HTTP interface: all commands on a Unix socket, reads alone on `[daemon] admin`."""
