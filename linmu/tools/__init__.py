"""What the commands for bundles and folders do, as functions: verify, bench, build, inspect, doctor."""
