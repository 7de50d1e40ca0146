"""The engine's planner and scheduler on paper hardware: a cost model in place of the device."""
