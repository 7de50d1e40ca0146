"""What the benchmark programs share: sizes, contestants, rows, floors."""
