"""How one run is spread over processes: the strategy, sharding, tensor parallelizm, checkpoints of shards."""
