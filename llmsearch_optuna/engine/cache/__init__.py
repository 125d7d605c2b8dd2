"""Keys, values and next-token scores that are kept between requests, and where they are."""
