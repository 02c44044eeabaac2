"""Networks: encoders, heads, the online and the target side."""
