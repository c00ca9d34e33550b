"""How one run is distributed over processes: the strategy, sharding, tensor parallelism, sharded checkpoints."""
