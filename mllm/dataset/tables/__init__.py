"""Tables of rows: json, jsonl, csv, tsv, Parquet, Arrow and Hugging Face datasets, and filters over them."""
