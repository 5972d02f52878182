"""One builder per model type: `builder.load_pretrained` finds it by `model_args.type`."""
