"""Applications built on the library. No module outside this folder imports them."""
