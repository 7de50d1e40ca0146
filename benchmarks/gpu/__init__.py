"""What is measured and checked on a GPU; run.sh is the entry."""
