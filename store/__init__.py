"""What both processes share: the database, the blobs, and the rules of a batch's life."""
