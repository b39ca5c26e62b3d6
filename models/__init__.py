"""What is trained: the ladder of sizes, the models, upstream data, the training loop."""
