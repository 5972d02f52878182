"""LoRA adapters: targets, attachment, files, combination and merging."""
