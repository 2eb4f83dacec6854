"""The kinds of identity provider, one file each, and the table of what is known of their products."""
