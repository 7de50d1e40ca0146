"""The commands for people who live in a shell: submit, watch, fetch, over HTTP."""
