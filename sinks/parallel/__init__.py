"""How one run is spread over processes: the strategy, sharding, tensor parallelism, checkpoints of shards."""
