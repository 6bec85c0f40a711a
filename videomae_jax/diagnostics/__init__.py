"""Ask before and after a run: plans, benchmarks, health checks."""
