"""Readers of tables: JSON, JSON lines, CSV, TSV, Parquet, Arrow and the Hugging Face Hub."""
