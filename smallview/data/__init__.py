"""Pictures in: sources, decoding, packing, loading."""
