"""What is trained: LightningModules and their optimizers."""
