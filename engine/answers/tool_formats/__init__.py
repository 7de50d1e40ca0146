"""How models write function calls: a parser and a grammar for each format."""
