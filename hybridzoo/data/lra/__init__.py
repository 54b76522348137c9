"""The Long Range Arena: generators of ListOps and Pathfinder, readers of the official files. docs/lra.md explains."""
