"""What a checkpoint is judged by: downstream tasks, features, probes."""
