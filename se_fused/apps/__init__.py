"""Applications of the library. Nothing outside this folder imports them."""
