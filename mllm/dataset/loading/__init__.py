"""Loading of logical batches: samplers and the collator."""
