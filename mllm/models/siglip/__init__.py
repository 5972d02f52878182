"""SigLIP vision towers without a language model, such as MedSigLIP."""
