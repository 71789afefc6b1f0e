"""What a method is made of, above the networks."""
